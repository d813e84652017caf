"""Tip-Adapter (Zhang et al., ECCV 2022, arXiv 2207.09519), eq. 4–6, without training.

Logits: 100·f·T + α·exp(-β(1 - f·keys))·onehot, f and T of unit length. Keys: the mean of the
support images' features over ten augmented passes, then normalised. α and β are searched on
validation, over the official grid; without validation they are the paper's constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vipbench import api
from vipbench.methods.shared.prototypes import Templates, one_hot, unit_texts
from vipbench.methods.shared.tip import cache_keys, cache_logits, search


class TipAdapter(api.Method):
    """Zero-shot logits plus those of a cache of support features, without any training."""

    name = "tip-adapter"
    kind: ClassVar[Literal["TF", "AD"]] = "TF"  # AD: Tip-Adapter-F
    paper = "Zhang et al., Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification"
    year = 2022
    cost = "seconds"
    published = api.Published(validation="full")

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """alpha, beta: where there is no validation, or `search` is off. scale_*, steps_*: the
        grid. passes: augmented passes in the keys. logit_scale: of the text logits."""

        alpha: api.NonNegative = 1.0
        beta: api.NonNegative = 5.5
        search: bool = True
        scale_beta: api.Positive = 7.0
        scale_alpha: api.Positive = 3.0
        steps_beta: api.Count = 200
        steps_alpha: api.Count = 20
        passes: api.Whole = 10
        logit_scale: api.Positive = 100.0
        templates: Templates = "first"

        tunes: ClassVar[tuple[api.Range, ...]] = (
            api.Range("alpha", 0.1, 10.0, log=True),
            api.Range("beta", 0.1, 20.0, log=True),
        )

        def recipe(self, info: api.CellInfo) -> api.Recipe:
            """Nothing is trained; the views are asked for."""
            views = api.Views(count=self.passes, scale=(0.5, 1.0))
            return api.Recipe(epochs=0, views=views)

    def __init__(self, task: api.Task, hparams: HParams) -> None:
        super().__init__(task, hparams)
        self.text = unit_texts(task, hparams.templates)  # (C,D)
        self.alpha = torch.tensor(hparams.alpha, device=task.device)
        self.beta = torch.tensor(hparams.beta, device=task.device)

    def prepare(self, support: api.Support) -> None:
        """The cache."""
        self.keys = cache_keys(support, self.hparams.passes)  # (N,D)
        self.values = one_hot(support.labels, self.task.n_classes, self.keys)  # (N,C)

    def forward(self, x: Tensor) -> Tensor:
        """(B,D) -> (B,C)."""
        text, affinity = self._parts(x)
        return text + self.alpha * cache_logits(affinity, self.values, self.beta)

    @torch.no_grad()
    def finish(self, support: api.Support) -> None:
        """Search α and β on validation."""
        hp = self.hparams
        if support.val is None or not hp.search:
            return
        found = search(
            *self._parts(support.val.x),
            self.values,
            support.val.labels,
            (hp.scale_beta, hp.scale_alpha),
            (hp.steps_beta, hp.steps_alpha),
        )
        if found is not None:
            self.beta.fill_(found[0])
            self.alpha.fill_(found[1])

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.normalize(x, dim=-1)
        return self.hparams.logit_scale * x @ self.text.T, x @ self.keys.T
