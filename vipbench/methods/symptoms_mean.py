"""Classification by description (Menon and Vondrick, ICLR 2023, arXiv 2210.07183, eq. 1).

The official program's scores are bare cosines, without the checkpoint's temperature; `compat`
gives them. It also writes the class name before each description; here symptoms hold none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vipbench import api


class SymptomsMean(api.Method):
    """Per class the mean over its symptoms of the cosine similarity, without any training."""

    name = "symptoms-mean"
    kind = "TF"
    paper = "Menon and Vondrick, Visual Classification via Description from Large Language Models"
    year = 2023
    cost = "seconds"
    needs = frozenset({"symptoms"})
    uses_support = False

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """compat: "official" leaves out the temperature, as the official program does."""

        compat: Literal["paper", "official"] = "paper"

    def __init__(self, task: api.Task, hparams: HParams) -> None:
        super().__init__(task, hparams)
        symptoms = task.symptom_texts()
        self.mask = task.embed(symptoms).mask  # (C,K), or None where no class is padded
        self.symptoms = F.normalize(task.text_features(symptoms), dim=-1)  # (C,K,D)
        self.scale: float = task.logit_scale if hparams.compat == "paper" else 1.0

    def forward(self, x: Tensor) -> Tensor:
        """(B,D) -> (B,C)."""
        similarity = F.normalize(x, dim=-1) @ self.symptoms.flatten(0, 1).T  # (B,C*K)
        similarity = similarity.unflatten(-1, self.symptoms.shape[:2])  # (B,C,K)
        mask = torch.ones_like(similarity[0]) if self.mask is None else self.mask.to(similarity)
        mean: Tensor = (similarity * mask).sum(-1) / mask.sum(-1)
        return self.scale * mean

    def symptom_view(self) -> tuple[Tensor, Tensor]:
        """The symptoms' features; each counts alike."""
        alike = self.symptoms.new_zeros(self.symptoms.shape[:2])
        if self.mask is not None:
            alike = alike.masked_fill(~self.mask, -torch.inf)
        return self.symptoms, torch.softmax(alike, -1)
