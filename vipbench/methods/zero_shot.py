"""Zero-shot classification with CLIP (Radford et al., ICML 2021, arXiv 2103.00020, §3.1.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vipbench import api


class ZeroShot(api.Method):
    """Cosine of image and class-name text; several templates are averaged (prompt ensembling)."""

    name = "zero-shot"
    kind = "TF"
    paper = "Radford et al., Learning Transferable Visual Models From Natural Language Supervision"
    year = 2021
    cost = "seconds"
    uses_support = False

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """templates: "first" takes the dataset's first template, "all" the mean over them."""

        templates: Literal["first", "all"] = "first"

    def __init__(self, task: api.Task, hparams: HParams) -> None:
        super().__init__(task, hparams)
        chosen = task.templates if hparams.templates == "all" else task.templates[:1]
        self.classes = task.class_features(chosen)  # (C,D)

    def forward(self, x: Tensor) -> Tensor:
        """(B,D) -> (B,C)."""
        return self.task.cosine_logits(x, self.classes)
