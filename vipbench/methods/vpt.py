"""VPT, visual prompt tuning (Jia et al., ECCV 2022, arXiv 2203.12119), on a CLIP.

Equations 4 and 5 (shallow) and 6 to 8 (deep): learned rows beside the patch tokens, before the
first block or before every block. The text side is frozen. As in the comparisons of CLIP prompts
(Khattak et al., CVPR 2023): the rows stand behind the patches, come in after the positional
embedding and before the first normalisation, and start from N(0, 0.02²); 8 rows in every layer,
SGD 2.5e-3, batch 4, 5 epochs, texts "a photo of a {}.".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vipbench import api
from vipbench.methods.shared.deep import DeepPrompts


class VPT(api.Method):
    """Learned rows beside the patch tokens, before one or all blocks; frozen texts."""

    name = "vpt"
    kind = "MM"
    paper = "Jia et al., Visual Prompt Tuning"
    year = 2022
    inputs = "images"
    needs = frozenset({"text", "vit"})

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """n_ctx: rows a layer. depth: `deep`, rows of its own in every layer; `shallow`, in the
        first alone; or in how many layers. template: of the texts; empty takes the dataset's."""

        n_ctx: api.Count = 8
        depth: api.Count | Literal["deep", "shallow"] = "deep"
        template: str = "a photo of a {}."
        lr: api.Positive = 2.5e-3
        batch_size: api.Count = 4
        epochs: api.Count = 5

        tunes = (
            api.Range("lr", 2.5e-4, 2.5e-2, log=True),
            api.Choice("n_ctx", (2, 4, 8, 16)),
        )

        def recipe(self, info: api.CellInfo) -> api.Recipe:
            """Prompt SGD."""
            return api.Recipe(lr=self.lr, epochs=self.epochs, batch_size=self.batch_size)

    def __init__(self, task: api.Task, hparams: HParams) -> None:
        super().__init__(task, hparams)
        tower = task.backbone
        assert tower.vision_width is not None
        given = {"deep": tower.vision_layers, "shallow": 1}.get(str(hparams.depth), hparams.depth)
        depth = min(int(given), tower.vision_layers)
        self.vision = nn.Parameter(
            task.normal("vision", depth, hparams.n_ctx, tower.vision_width)
        )  # (d,M,V)
        self.classes = task.class_features([hparams.template or task.templates[0]])  # (C,D)

    def forward(self, x: Tensor) -> Tensor:
        """(B,3,H,H) -> (B,C)."""
        images = self.task.backbone.encode_image(x, DeepPrompts(vision=self.vision))
        return self.task.cosine_logits(images, self.classes)

    def predict(self, x: Tensor) -> Tensor:
        """(N,3,H,H) -> (N,C)."""
        return torch.cat([self(some) for some in x.split(64)])
