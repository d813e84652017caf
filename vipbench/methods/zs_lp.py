"""ZS-LP, zero-shot-initialised linear probe (Silva-Rodríguez et al., CVPR 2024, arXiv 2312.12730).

The revisited linear probe of the paper's §3.2: CLAP without its penalty. Prototypes start at the
text features; logits are cosines times the checkpoint's temperature; settings as CLAP's.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from vipbench import api
from vipbench.methods.shared.prototypes import Templates, raw_texts


class ZSLP(api.Method):
    """A linear probe of cosines that starts at the class texts."""

    name = "zs-lp"
    kind = "AD"
    paper = (
        "Silva-Rodríguez et al., A Closer Look at the Few-Shot Adaptation of Large Vision-Language "
        "Models"
    )
    year = 2024
    cost = "seconds"

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """passes: augmented passes over the support images."""

        passes: api.Whole = 20
        templates: Templates = "first"
        lr: api.Positive = 0.1
        batch_size: api.Count = 256
        epochs: api.Count = 300

        def recipe(self, info: api.CellInfo) -> api.Recipe:
            """SGD without decay, batches from all passes together."""
            return api.Recipe(
                lr=self.lr,
                weight_decay=0.0,
                epochs=self.epochs,
                batch_size=self.batch_size,
                views=api.Views(count=self.passes),
                pooled=True,
            )

    def __init__(self, task: api.Task, hparams: HParams) -> None:
        super().__init__(task, hparams)
        self.prototypes = nn.Parameter(raw_texts(task, hparams.templates).clone())  # (C,D)

    def forward(self, x: Tensor) -> Tensor:
        """(B,D) -> (B,C)."""
        return self.task.cosine_logits(x, self.prototypes)
