"""Tip-Adapter-F (Zhang et al., ECCV 2022, arXiv 2207.09519): Tip-Adapter with trained keys.

Published settings: AdamW 1e-3 with ε = 1e-4 and PyTorch's decay 1e-2, cosine over all steps,
batch 256, 20 epochs, the incomplete last batch kept. α and β are constants in training and are
searched on validation afterwards; without validation they stay. The official program scores the
epoch that is best on the TEST split; here the run's selection rule decides, by default the last.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from vipbench import api
from vipbench.methods.shared.prototypes import one_hot
from vipbench.methods.shared.tip import cache_keys
from vipbench.methods.tip_adapter import TipAdapter


class TipAdapterF(TipAdapter):
    """Tip-Adapter whose cache keys are trained."""

    name = "tip-adapter-f"
    kind = "AD"

    @dataclass(frozen=True)
    class HParams(TipAdapter.HParams):
        """As of tip-adapter, and lr, epochs, batch_size of the training."""

        lr: api.Positive = 1e-3
        epochs: api.Count = 20
        batch_size: api.Count = 256

        tunes = (*TipAdapter.HParams.tunes, api.Range("lr", 1e-4, 1e-2, log=True))

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

    def prepare(self, support: api.Support) -> None:
        """The cache; its keys are parameters, and not normalised again."""
        keys = cache_keys(support, self.hparams.passes, start=self.hparams.epochs)  # (N,D)
        self.keys = nn.Parameter(keys)
        self.values = one_hot(support.labels, self.task.n_classes, keys)  # (N,C)
