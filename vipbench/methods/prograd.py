"""ProGrad, prompt-aligned gradient (Zhu et al., ICCV 2023, arXiv 2205.14865).

Eq. 5: the gradient of CoOp's cross-entropy loses its part against the gradient of the
Kullback-Leibler divergence from the zero-shot prediction, λ times it; momentum and weight decay
act afterwards, and the divergence's own gradient is never applied. Settings as CoOp's, with the
temperature T = 1 and λ = 1. The context starts from the words before the class name in the
dataset's template; they are the last of the M vectors, and the vectors before them are zeros, as in
the official program, which refuses fewer vectors than words.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vipbench import api


class ProGrad(api.Method):
    """CoOp that only learns what does not contradict the zero-shot prediction."""

    name = "prograd"
    kind = "TP"
    paper = "Zhu et al., Prompt-aligned Gradient for Prompt Tuning"
    year = 2023
    revision = 2
    pads = True

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """n_ctx: M. context_init: words at the end of the context; None takes those before the
        class name in the dataset's first template; empty draws all of it. strength: λ.
        temperature: T. epochs: None follows CoOp's rule by shots."""

        n_ctx: api.Count = 16
        context_init: str | None = None
        class_specific: bool = False
        strength: api.NonNegative = 1.0
        temperature: api.Positive = 1.0
        lr: api.Positive = 2e-3
        batch_size: api.Count = 32
        epochs: api.Count | None = None

        tunes = (
            api.Range("lr", 2e-4, 2e-2, log=True),
            api.Range("strength", 0.1, 1.0),
        )

        def for_cell(self, info: api.CellInfo) -> ProGrad.HParams:
            """Epochs by shots."""
            by_shots = 50 if info.shots in (None, 1) else 100 if info.shots <= 4 else 200
            return replace(self, epochs=self.epochs or by_shots)

        def recipe(self, info: api.CellInfo) -> api.Recipe:
            """Prompt SGD."""
            return api.Recipe(lr=self.lr, epochs=self.epochs, batch_size=self.batch_size)

    def __init__(self, task: api.Task, hparams: HParams) -> None:
        super().__init__(task, hparams)
        texts = [("", f"{name}.") for name in task.names]
        self.prompts = task.embed(texts, hparams.n_ctx)  # (C,)
        many = (task.n_classes,) if hparams.class_specific else ()
        start = hparams.context_init
        if start is None:
            start = task.templates[0].partition("{}")[0].strip()
        if start:
            words = task.backbone.embed_words(start)  # (n,W)
            if len(words) > hparams.n_ctx:
                raise api.UnsupportedError(
                    f"n_ctx is {hparams.n_ctx}, and the start words '{start}' are {len(words)} "
                    f"tokens of '{task.backbone.name}'; set n_ctx to {len(words)} or more, or "
                    "name other words by context_init"
                )
            blank = words.new_zeros(hparams.n_ctx - len(words), words.shape[1])
            context = torch.cat([blank, words]).expand(*many, -1, -1)
        else:
            context = task.normal("context", *many, hparams.n_ctx, task.info.width)
        self.context = nn.Parameter(context.clone())  # (M,W) or (C,M,W)
        self.teacher = task.class_features(task.templates[:1])  # (C,D)

    def forward(self, x: Tensor) -> Tensor:
        """(B,D) -> (B,C)."""
        return self.task.cosine_logits(x, self.task.encode_text(self.prompts, self.context))

    def loss(self, batch: api.Batch) -> tuple[Tensor, ...]:
        """Cross-entropy, and the divergence from the zero-shot prediction but for a constant."""
        t = self.hparams.temperature
        logits = self(batch.x)
        target = (self.task.cosine_logits(batch.x, self.teacher) / t).softmax(-1)
        general = -(target * (logits / t).log_softmax(-1)).sum(-1) * t * t  # (B,)
        own = F.cross_entropy(logits, batch.labels, reduction="none")
        return batch.mean(own), batch.mean(general)

    def combine(self, grads: tuple[Tensor, ...]) -> Tensor:
        """The first gradient less its part against the second."""
        own, general = grads
        direction = F.normalize(general.flatten(), dim=0).view_as(own)
        # Only where the two disagree; as a clamp, so that it holds for each stacked cell.
        against = (own * direction).sum().clamp(max=0)
        kept: Tensor = own - self.hparams.strength * against * direction
        return kept
