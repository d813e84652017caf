"""Supervised baselines: a linear head on an image tower, alone or with all of the tower's weights.

What a medical imaging paper without language models would do: cross-entropy on the support set,
from pretrained weights or from random ones (as the "fully supervised" rows of ViP's Table 1,
arXiv 2409.00341). No paper states these rows' settings; the defaults are vipbench's own: AdamW,
decay 1e-2, cosine over the steps, 50 epochs of batch 32, rate 1e-3 for a head and for random
weights, 1e-4 for pretrained weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vipbench import api


class Supervised(api.Method):
    """A linear head on the image tower, trained alone or with all of the tower's weights."""

    name = "supervised"
    kind = "FT"
    paper = "no paper: a baseline"
    inputs = "images"
    needs = frozenset()
    stackable = False
    trains_towers = True

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """train: `all` weights, or a linear `head` on the frozen tower. pretrained: start from
        the backbone's weights, or from random ones. image_size: side of the images where it is
        below the tower's own; towers of one size, vision transformers and CLIP's ResNets, keep
        theirs. lr: None follows the other two."""

        train: Literal["all", "head"] = "all"
        pretrained: bool = True
        image_size: api.Count | None = None
        lr: api.Positive | None = None
        weight_decay: api.NonNegative = 1e-2
        batch_size: api.Count = 32
        epochs: api.Count = 50

        tunes = (
            api.Range("lr", 1e-5, 1e-2, log=True),
            api.Range("weight_decay", 1e-4, 1e-1, log=True),
        )

        def __post_init__(self) -> None:
            if self.train == "head" and not self.pretrained:
                raise ValueError(
                    "train=head needs pretrained weights; give train=all or pretrained=on"
                )

        def for_cell(self, info: api.CellInfo) -> Supervised.HParams:
            """The rate."""
            gentle = self.train == "all" and self.pretrained
            return replace(self, lr=self.lr or (1e-4 if gentle else 1e-3))

        def recipe(self, info: api.CellInfo) -> api.Recipe:
            """AdamW, cosine over the steps."""
            assert self.lr is not None
            return api.Recipe(
                optimizer="adamw",
                lr=self.lr,
                weight_decay=self.weight_decay,
                epochs=self.epochs,
                schedule="cosine-step",
                batch_size=self.batch_size,
            )

        def notes(self, info: api.CellInfo) -> tuple[str, ...]:
            """That no paper states these settings."""
            return ("settings of vipbench's own: no paper states any",)

        def quick(self, info: api.CellInfo) -> Supervised.HParams:
            """At most 10 epochs and 64 pixels."""
            side = min(64, self.image_size or 64)
            return replace(self, epochs=min(10, self.epochs), image_size=side)

    def __init__(self, task: api.Task, hparams: HParams) -> None:
        super().__init__(task, hparams)
        backbone = task.image_backbone
        if hparams.pretrained and backbone.name.endswith("+random"):
            raise api.UnsupportedError(
                f"'{backbone.name}' has no pretrained weights: supervised[pretrained=off]"
            )
        self.head = task.linear("head", backbone.dim, task.n_classes)
        if hparams.train == "all":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(task.generator("init/tower").initial_seed())
                self.tower = backbone.trainable_copy(hparams.pretrained)
            for module in self.tower.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    # A count that nothing uses; torch.func forbids writing it.
                    module.num_batches_tracked = None
        self.side = self._side()

    def _side(self) -> int | None:
        """The side that images are made smaller to; None: they stay as they are, where that is no
        smaller, or the tower takes images of one size alone."""
        backbone = self.task.image_backbone
        side: int | None = self.hparams.image_size
        if side is None or backbone.vision_layers or side >= backbone.image_size:
            return None
        try:
            with torch.no_grad():
                backbone.encode_image(torch.zeros(1, 3, side, side, device=backbone.device))
        except (RuntimeError, ValueError, AssertionError):
            return None
        return side

    def forward(self, x: Tensor) -> Tensor:
        """(B,3,H,H) -> (B,C)."""
        if self.side is not None:
            x = F.interpolate(x, (self.side, self.side), mode="bilinear", antialias=True)
        if self.hparams.train == "all":
            features = self.tower(x)  # (B,D)
        else:
            with torch.no_grad():
                features = self.task.image_backbone.encode_image(x)
        logits: Tensor = self.head(features)
        return logits

    def predict(self, x: Tensor) -> Tensor:
        """(N,3,H,H) -> (N,C)."""
        return torch.cat([self(some) for some in x.split(64)])
