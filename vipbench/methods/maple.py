"""MaPLe, multi-modal prompt learning (Khattak et al., CVPR 2023, arXiv 2210.03117).

Equations 4 to 8: learned text prompts before the first J blocks of the text tower; the vision
tower's prompts are their linear images, P̃_i = F_i(P_i). Published settings: J = 9, M = 2 from
"a photo of a", SGD 3.5e-3, batch 4, 5 epochs (base-to-new).
As in the official program, the couplings F_1…F_{J-1} start as copies of one layer, couplings
have a bias, and the words of `context_init` that the context does not take stay in the text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from vipbench import api
from vipbench.methods.shared.deep import DeepPrompts, PromptedTowers, first_row, starting_words


class MaPLe(PromptedTowers):
    """Learned prompts in the first blocks of both towers, the vision's coupled to the text's."""

    name = "maple"
    kind = "MM"
    paper = "Khattak et al., MaPLe: Multi-modal Prompt Learning"
    year = 2023

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """n_ctx: M. depth: J, at most the layers of the smaller tower. context_init: words to
        start from; with fewer tokens than M, or empty, N(0, 0.02²) is drawn."""

        n_ctx: api.Count = 2
        depth: api.Count = 9
        context_init: str = "a photo of a"
        lr: api.Positive = 3.5e-3
        batch_size: api.Count = 4
        epochs: api.Count = 5

        tunes = (
            api.Range("lr", 3.5e-4, 3.5e-2, log=True),
            api.Choice("depth", (1, 3, 6, 9)),
        )

        def recipe(self, info: api.CellInfo) -> api.Recipe:
            """Prompt SGD."""
            return api.Recipe(lr=self.lr, epochs=self.epochs, batch_size=self.batch_size)

    def __init__(self, task: api.Task, hparams: HParams) -> None:
        super().__init__(task, hparams)
        tower = task.backbone
        text, vision = tower.width, tower.vision_width
        assert vision is not None
        more = min(hparams.depth, tower.text_layers, tower.vision_layers) - 1  # J-1
        context, rest = starting_words(task, hparams.context_init, hparams.n_ctx)
        texts = [("", f"{rest} {name}.".lstrip()) for name in task.names]
        self.prompts = task.embed(texts, hparams.n_ctx)  # (C,)
        self.first = first_row(self.prompts)
        self.context = nn.Parameter(context)  # (M,W)
        self.deep = nn.Parameter(task.normal("deep", more, hparams.n_ctx, text))  # (J-1,M,W)
        self.project = task.linear("project", text, vision)
        # Values are keyed by purpose: the same purpose twice gives the same values.
        self.project_deep = nn.ModuleList(
            task.linear("project_deep", text, vision) for _ in range(more)
        )

    def tap(self) -> DeepPrompts:
        """Both towers' prompts."""
        shallow = self.project(self.context)  # (M,V)
        deep = [f(rows) for f, rows in zip(self.project_deep, self.deep, strict=True)]
        return DeepPrompts(self.deep, torch.stack([shallow, *deep]), self.first)
