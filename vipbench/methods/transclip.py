"""TransCLIP, zero-shot (Zanella et al., NeurIPS 2024, arXiv 2406.01837), eq. 1–8: transductive.

All images to classify are seen at once: a Gaussian mixture over their features whose assignments
are held to the zero-shot probabilities and to those of their nearest neighbours. Settings of the
official program: λ = 1, 3 neighbours, means from the 8 most confident images of each class, 10
outer and 5 inner iterations, temperature 100. Tables keep the method apart from inductive ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vipbench import api
from vipbench.methods.shared.prototypes import Templates, unit_texts
from vipbench.methods.shared.transclip import solve


class TransCLIP(api.Method):
    """Zero-shot with all test images seen at once: a Gaussian mixture held to the texts."""

    name = "transclip"
    kind = "TF"
    paper = "Zanella et al., Boosting Vision-Language Models with Transduction"
    year = 2024
    cost = "seconds"
    needs = frozenset({"text", "test_images"})
    uses_support = False

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """text_weight: λ."""

        text_weight: api.NonNegative = 1.0
        n_neighbors: api.Count = 3
        n_most_confident: api.Count = 8
        max_iter: api.Count = 10
        inner_iter: api.Count = 5
        logit_scale: api.Positive = 100.0
        templates: Templates = "first"

        tunes: ClassVar[tuple[api.Range, ...]] = (api.Range("text_weight", 0.1, 2.0),)

    def __init__(self, task: api.Task, hparams: HParams) -> None:
        super().__init__(task, hparams)
        self.text = unit_texts(task, hparams.templates)  # (C,D)

    def forward(self, x: Tensor) -> Tensor:
        """The zero-shot logits: (B,D) -> (B,C)."""
        logits: Tensor = self.hparams.logit_scale * F.normalize(x, dim=-1) @ self.text.T
        return logits

    def predict(self, x: Tensor) -> Tensor:
        """All test images: (Q,D) -> log-probabilities (Q,C)."""
        hp = self.hparams
        *_, z = solve(
            F.normalize(x, dim=-1),
            self(x).softmax(-1),
            None,
            (0.0,),
            text_weight=hp.text_weight,
            max_iter=hp.max_iter,
            inner_iter=hp.inner_iter,
            n_neighbors=hp.n_neighbors,
            n_most_confident=hp.n_most_confident,
        )
        return z.clamp(min=torch.finfo(z.dtype).tiny).log()
