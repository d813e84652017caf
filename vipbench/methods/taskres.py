"""TaskRes, task residual tuning (Yu et al., CVPR 2023, arXiv 2211.10277), eq. 4, regular base.

Class weights t + α·x: t the text features as the tower gives them (the mean over templates, not
normalised, so that α is relative to their length), x a learned residual that starts at 0.
Published: α = 0.5; Adam 2e-3 with weight decay 5e-4 in the gradient, so that the decay pulls x
to 0; batch 256; 100 epochs up to 4 shots, 200 above.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vipbench import api
from vipbench.methods.shared.prototypes import Templates, raw_texts


class TaskRes(api.Method):
    """Class texts plus a learned residual each."""

    name = "taskres"
    kind = "AD"
    paper = "Yu et al., Task Residual for Tuning Vision-Language Models"
    year = 2023
    cost = "seconds"

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """alpha: scale of the residual. epochs: None follows the paper by shots."""

        alpha: api.NonNegative = 0.5
        templates: Templates = "first"
        lr: api.Positive = 2e-3
        weight_decay: api.NonNegative = 5e-4
        batch_size: api.Count = 256
        epochs: api.Count | None = None

        tunes = (
            api.Range("alpha", 0.1, 2.0, log=True),
            api.Range("lr", 2e-4, 2e-2, log=True),
        )

        def for_cell(self, info: api.CellInfo) -> TaskRes.HParams:
            """Epochs by shots."""
            few = info.shots is not None and info.shots <= 4
            return replace(self, epochs=self.epochs or (100 if few else 200))

        def recipe(self, info: api.CellInfo) -> api.Recipe:
            """Adam with the decay in the gradient."""
            return api.Recipe(
                optimizer="adam",
                lr=self.lr,
                weight_decay=self.weight_decay,
                epochs=self.epochs,
                batch_size=self.batch_size,
            )

    def __init__(self, task: api.Task, hparams: HParams) -> None:
        super().__init__(task, hparams)
        self.text = raw_texts(task, hparams.templates)  # (C,D)
        self.residual = nn.Parameter(torch.zeros_like(self.text))  # (C,D)

    def forward(self, x: Tensor) -> Tensor:
        """(B,D) -> (B,C)."""
        return self.task.cosine_logits(x, self.text + self.hparams.alpha * self.residual)
