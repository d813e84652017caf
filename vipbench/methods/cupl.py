"""CuPL, customised prompts via language models (Pratt et al., ICCV 2023, arXiv 2209.03320).

Zero-shot classification in which each class is the mean of the unit-length features of its
LLM-written descriptions, renormalised.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from vipbench import api


class CuPL(api.Method):
    """Zero-shot with the mean of each class's LLM-written descriptions."""

    name = "cupl"
    kind = "TF"
    paper = "Pratt et al., What Does a Platypus Look Like? Generating Customized Prompts"
    year = 2023
    cost = "seconds"
    needs = frozenset({"text", "descriptions"})
    uses_support = False

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """n_prompts: descriptions of each class; None takes as many as every class has."""

        n_prompts: api.Count | None = None

    def __init__(self, task: api.Task, hparams: HParams) -> None:
        super().__init__(task, hparams)
        least = min((len(texts) for texts in task.descriptions or ()), default=0)
        texts = task.description_texts(hparams.n_prompts or max(1, least))
        features = F.normalize(task.text_features(texts), dim=-1)  # (C,K,D)
        self.classes = F.normalize(features.mean(1), dim=-1)  # (C,D)

    def forward(self, x: Tensor) -> Tensor:
        """(B,D) -> (B,C)."""
        return self.task.cosine_logits(x, self.classes)
