"""CLIP-Adapter (Gao et al., IJCV 2024, arXiv 2110.04544), eq. 5–7: the visual adapter.

v = r·ReLU(W₂ ReLU(W₁ f)) + (1-r)·f on the tower's own feature f, without biases; bottleneck D/4.
Published: r = 0.2 in the program (searched for each dataset in the paper), rate 1e-5, batch 32,
other settings as CoOp's; the program has none. The ReLU behind W₂ is the program's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, relu

from vipbench import api
from vipbench.methods.shared.prototypes import Templates, unit_texts


class CLIPAdapter(api.Method):
    """A small residual network on the image feature, compared with the class-name texts."""

    name = "clip-adapter"
    kind = "AD"
    paper = "Gao et al., CLIP-Adapter: Better Vision-Language Models with Feature Adapters"
    year = 2021
    cost = "seconds"

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """ratio: r. reduction: D over the bottleneck's width. epochs: None follows CoOp's rule by
        shots."""

        ratio: api.Proportion = 0.2
        reduction: api.Count = 4
        templates: Templates = "first"
        lr: api.Positive = 1e-5
        batch_size: api.Count = 32
        epochs: api.Count | None = None

        tunes = (
            api.Range("ratio", 0.1, 0.9),
            api.Range("lr", 1e-5, 1e-1, log=True),
        )

        def for_cell(self, info: api.CellInfo) -> CLIPAdapter.HParams:
            """Epochs by shots."""
            by_shots = 50 if info.shots in (None, 1) else 100 if info.shots <= 4 else 200
            return replace(self, epochs=self.epochs or by_shots)

        def recipe(self, info: api.CellInfo) -> api.Recipe:
            """Prompt SGD."""
            return api.Recipe(lr=self.lr, epochs=self.epochs, batch_size=self.batch_size)

    def __init__(self, task: api.Task, hparams: HParams) -> None:
        super().__init__(task, hparams)
        dim, inner = task.info.dim, max(1, task.info.dim // hparams.reduction)
        self.text = unit_texts(task, hparams.templates)  # (C,D)
        self.down = task.linear("adapter.down", dim, inner, bias=False)
        self.up = task.linear("adapter.up", inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B,D) -> (B,C)."""
        ratio = self.hparams.ratio
        adapted = relu(self.up(relu(self.down(x))))  # (B,D)
        return self.task.cosine_logits(ratio * adapted + (1 - ratio) * x, self.text)
