"""CoOp, context optimisation (Zhou et al., IJCV 2022, arXiv 2109.01134).

Equation 2 (text = [V]_1 … [V]_M [CLASS]) and 3 (the class in the middle, or in front); shared or
class-specific context. Published settings: M = 16, N(0, 0.02²); SGD 2e-3 with cosine after one
warm-up epoch, batch 32; 50, 100, 200 epochs at 1, 2–4, 8–16 shots. The paper has no run on full
data: there, 50 epochs as in ViP's comparison.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from vipbench import api


class CoOp(api.Method):
    """Learned context vectors in front of, around or behind the class name."""

    name = "coop"
    kind = "TP"
    paper = "Zhou et al., Learning to Prompt for Vision-Language Models"
    year = 2022
    cost = "minutes"

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """n_ctx: M. position: of the class name. class_specific: one context a class.
        context_init: words to start from, which then set M; empty draws N(0, 0.02²).
        epochs: None follows the paper's rule by shots."""

        n_ctx: api.Count = 16
        position: Literal["end", "middle", "front"] = "end"
        class_specific: bool = False
        context_init: str = ""
        lr: api.Positive = 2e-3
        batch_size: api.Count = 32
        epochs: api.Count | None = None

        tunes = (
            api.Range("lr", 2e-4, 2e-2, log=True),
            api.Choice("n_ctx", (4, 8, 16)),
        )

        def for_cell(self, info: api.CellInfo) -> CoOp.HParams:
            """Epochs by shots."""
            by_shots = 50 if info.shots in (None, 1) else 100 if info.shots <= 4 else 200
            return replace(self, epochs=self.epochs or by_shots)

        def recipe(self, info: api.CellInfo) -> api.Recipe:
            """Prompt SGD."""
            return api.Recipe(lr=self.lr, epochs=self.epochs, batch_size=self.batch_size)

    def __init__(self, task: api.Task, hparams: HParams) -> None:
        super().__init__(task, hparams)
        pieces: dict[str, list[tuple[str, ...]]] = {
            "end": [("", f"{name}.") for name in task.names],
            "middle": [("", name, ".") for name in task.names],
            "front": [(name, ".") for name in task.names],
        }
        if hparams.context_init:
            context = task.backbone.embed_words(hparams.context_init)  # (M,W)
        else:
            context = task.normal("context", hparams.n_ctx, task.info.width)
        self.prompts = task.embed(pieces[hparams.position], len(context))  # (C,)
        if hparams.class_specific:
            shape = (task.n_classes, *context.shape)
            given = bool(hparams.context_init)
            context = context.expand(shape).clone() if given else task.normal("context", *shape)
        self.context = nn.Parameter(context.clone())  # (M,W) or (C,M,W)

    def forward(self, x: Tensor) -> Tensor:
        """(B,D) -> (B,C)."""
        classes = self.task.encode_text(self.prompts, self.context)  # (C,D)
        return self.task.cosine_logits(x, classes)
