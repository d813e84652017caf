"""KgCoOp, knowledge-guided context optimisation (Yao et al., CVPR 2023, arXiv 2303.13283).

Eq. 5–7: CoOp with a pull of the learned class texts w_c towards the hand-written ones w⁰_c:
loss = cross-entropy + λ·(1 - mean_c cos(w_c, w⁰_c)). Published: λ = 8, context from "a photo of
a", batch 128, 100 epochs, prompt SGD at 2e-3. The hand-written text is the dataset's first
template.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from vipbench import api


class KgCoOp(api.Method):
    """CoOp whose class texts are pulled towards the hand-written ones."""

    name = "kgcoop"
    kind = "TP"
    paper = "Yao et al., Visual-Language Prompt Tuning with Knowledge-guided Context Optimization"
    year = 2023
    pads = True

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """weight: λ. n_ctx: M where `context_init` is empty. class_specific: a context a
        class."""

        weight: api.NonNegative = 8.0
        n_ctx: api.Count = 4
        context_init: str = "a photo of a"
        class_specific: bool = False
        lr: api.Positive = 2e-3
        batch_size: api.Count = 128
        epochs: api.Count = 100

        tunes = (
            api.Range("lr", 2e-4, 2e-2, log=True),
            api.Range("weight", 0.5, 32.0, log=True),
        )

        def recipe(self, info: api.CellInfo) -> api.Recipe:
            """Prompt SGD."""
            return api.Recipe(lr=self.lr, epochs=self.epochs, batch_size=self.batch_size)

    def __init__(self, task: api.Task, hparams: HParams) -> None:
        super().__init__(task, hparams)
        if hparams.context_init:
            context = task.backbone.embed_words(hparams.context_init)  # (M,W)
            if hparams.class_specific:
                context = context.expand(task.n_classes, -1, -1)
        else:
            many = (task.n_classes,) if hparams.class_specific else ()
            context = task.normal("context", *many, hparams.n_ctx, task.info.width)
        self.context = nn.Parameter(context.clone())  # (M,W) or (C,M,W)
        texts = [("", f"{name}.") for name in task.names]
        self.prompts = task.embed(texts, context.shape[-2])  # (C,)
        self.teacher = task.class_features(task.templates[:1])  # (C,D)

    def forward(self, x: Tensor) -> Tensor:
        """(B,D) -> (B,C)."""
        return self.task.cosine_logits(x, self._classes())

    def loss(self, batch: api.Batch) -> Tensor:
        """Cross-entropy and the distance to the hand-written texts."""
        classes = self._classes()
        logits = self.task.cosine_logits(batch.x, classes)
        entropy = batch.mean(F.cross_entropy(logits, batch.labels, reduction="none"))
        away = 1 - F.cosine_similarity(classes, self.teacher, dim=-1).mean()
        total: Tensor = entropy + self.hparams.weight * away
        return total

    def _classes(self) -> Tensor:
        return self.task.encode_text(self.prompts, self.context)  # (C,D)
