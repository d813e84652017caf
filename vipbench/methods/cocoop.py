"""CoCoOp, conditional context optimisation (Zhou et al., CVPR 2022, arXiv 2203.05557).

Equation 5: v_m(x) = v_m + π with π = h(x), a two-layer network D -> D/16 -> W with ReLU on the
normalised image feature. Published settings: M = 4 from "a photo of a"; SGD 2e-3, batch 1,
10 epochs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vipbench import api


class CoCoOp(api.Method):
    """Learned context vectors, shifted for each image by a small network on its feature."""

    name = "cocoop"
    kind = "TP"
    paper = "Zhou et al., Conditional Prompt Learning for Vision-Language Models"
    year = 2022
    cost = "hours"

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """context_init: words to start from, which set M; empty draws n_ctx vectors."""

        n_ctx: api.Count = 4
        context_init: str = "a photo of a"
        lr: api.Positive = 2e-3
        batch_size: api.Count = 1
        epochs: api.Count = 10

        def recipe(self, info: api.CellInfo) -> api.Recipe:
            """Prompt SGD."""
            return api.Recipe(lr=self.lr, epochs=self.epochs, batch_size=self.batch_size)

    def __init__(self, task: api.Task, hparams: HParams) -> None:
        super().__init__(task, hparams)
        dim, width = task.info.dim, task.info.width
        if hparams.context_init:
            context = task.backbone.embed_words(hparams.context_init)
        else:
            context = task.normal("context", hparams.n_ctx, width)
        self.context = nn.Parameter(context.clone())  # (M,W)
        self.prompts = task.embed([("", f"{name}.") for name in task.names], len(context))  # (C,)
        inner = max(1, dim // 16)
        self.linear1 = task.linear("meta_net.linear1", dim, inner)
        self.linear2 = task.linear("meta_net.linear2", inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B,D) -> (B,C)."""
        shift = self.linear2(torch.relu(self.linear1(F.normalize(x, dim=-1))))  # (B,W)
        context = self.context + shift[:, None, None, :]  # (B,1,M,W)
        classes = self.task.encode_text(self.prompts, context)  # (B,C,D)
        return self.task.cosine_logits(x, classes)
