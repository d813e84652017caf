"""IVLP, independent vision-language prompts: the baseline of MaPLe (Khattak et al., CVPR 2023,
arXiv 2210.03117, table 1) and the model that PromptSRC regularises (arXiv 2307.06948).

Learned prompts before the first blocks of both towers, with nothing that ties the two together;
trained on cross-entropy. Settings of MaPLe's program: 2 rows in each of 12 layers of both towers,
text from "a photo of a", the rest N(0, 0.02²); SGD 3.5e-3, batch 4, 5 epochs. PromptSRC's
comparison takes 4 rows in 9 layers, 2.5e-3, 20 epochs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from vipbench import api
from vipbench.methods.shared.deep import DeepPrompts, PromptedTowers, first_row, starting_words


class IVLP(PromptedTowers):
    """Learned prompts in the first blocks of both towers, each by themselves."""

    name = "ivlp"
    kind = "MM"
    paper = "Khattak et al., MaPLe: Multi-modal Prompt Learning (independent V-L prompting)"
    year = 2023

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """n_ctx_text, n_ctx_vision: rows a layer. depth_text, depth_vision: in how many layers;
        depth_vision 0 leaves the images alone. context_init: as for MaPLe."""

        n_ctx_text: api.Count = 2
        n_ctx_vision: api.Count = 2
        depth_text: api.Count = 12
        depth_vision: api.Whole = 12
        context_init: str = "a photo of a"
        lr: api.Positive = 3.5e-3
        batch_size: api.Count = 4
        epochs: api.Count = 5

        tunes = (api.Range("lr", 3.5e-4, 3.5e-2, log=True),)

        def recipe(self, info: api.CellInfo) -> api.Recipe:
            """Prompt SGD."""
            return api.Recipe(lr=self.lr, epochs=self.epochs, batch_size=self.batch_size)

    def __init__(self, task: api.Task, hparams: HParams | Any) -> None:  # PromptSRC has its own
        super().__init__(task, hparams)
        tower, m = task.backbone, hparams.n_ctx_text
        assert tower.vision_width is not None
        more = min(hparams.depth_text, tower.text_layers) - 1
        layers = min(hparams.depth_vision, tower.vision_layers)
        context, rest = starting_words(task, hparams.context_init, m)
        texts = [("", f"{rest} {name}.".lstrip()) for name in task.names]
        self.prompts = task.embed(texts, m)  # (C,)
        self.first = first_row(self.prompts)
        self.context = nn.Parameter(context)  # (M,W)
        self.deep = nn.Parameter(task.normal("deep", more, m, tower.width))  # (d-1,M,W)
        self.vision = nn.Parameter(
            task.normal("vision", layers, hparams.n_ctx_vision, tower.vision_width)
        )  # (d,M,V)

    def tap(self) -> DeepPrompts:
        """Both towers' prompts."""
        return DeepPrompts(self.deep, self.vision, self.first)
