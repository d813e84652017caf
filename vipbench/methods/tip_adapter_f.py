"""Tip-Adapter-F (Zhang et al., ECCV 2022, arXiv 2207.09519): Tip-Adapter with trained keys.

Published settings: AdamW 1e-3 with ε = 1e-4 and PyTorch's decay 1e-2, cosine over all steps,
batch 256, 20 epochs, the incomplete last batch kept. α and β are constants in training and are
searched on validation afterwards; without validation they stay. The official program scores the
epoch that is best on the TEST split; here the run's selection rule decides, by default the last.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vipbench import api
from vipbench.methods.shared.prototypes import Templates, one_hot, unit_texts
from vipbench.methods.shared.tip import cache_keys, cache_logits, search


class TipAdapterF(api.Method):
    """Tip-Adapter whose cache keys are trained."""

    name = "tip-adapter-f"
    kind = "AD"
    paper = "Zhang et al., Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification"
    year = 2022
    cost = "seconds"
    published = api.Published(validation="full")

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """As of tip-adapter, and lr, epochs, batch_size of the training."""

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
        lr: api.Positive = 1e-3
        epochs: api.Count = 20
        batch_size: api.Count = 256

        tunes = (
            api.Range("alpha", 0.1, 10.0, log=True),
            api.Range("beta", 0.1, 20.0, log=True),
            api.Range("lr", 1e-4, 1e-2, log=True),
        )

        def recipe(self, info: api.CellInfo) -> api.Recipe:
            """AdamW; a view for every epoch, and others for the keys."""
            return api.Recipe(
                optimizer="adamw",
                lr=self.lr,
                eps=1e-4,
                weight_decay=1e-2,
                epochs=self.epochs,
                schedule="cosine-step",
                batch_size=self.batch_size,
                drop_last=False,
                views=api.Views(count=self.epochs + self.passes, scale=(0.5, 1.0)),
            )

    def __init__(self, task: api.Task, hparams: HParams) -> None:
        super().__init__(task, hparams)
        self.text = unit_texts(task, hparams.templates)  # (C,D)
        self.alpha = torch.tensor(hparams.alpha, device=task.device)
        self.beta = torch.tensor(hparams.beta, device=task.device)

    def prepare(self, support: api.Support) -> None:
        """The cache; its keys are parameters, and not normalised again."""
        keys = cache_keys(support, self.hparams.passes, start=self.hparams.epochs)  # (N,D)
        self.keys = nn.Parameter(keys)
        self.values = one_hot(support.labels, self.task.n_classes, keys)  # (N,C)

    def forward(self, x: Tensor) -> Tensor:
        """(B,D) -> (B,C)."""
        text, affinity = self._parts(x)
        return text + self.alpha * cache_logits(affinity, self.values, self.beta)

    @torch.no_grad()
    def finish(self, support: api.Support) -> None:
        """Search α and β on validation, with the trained keys."""
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
