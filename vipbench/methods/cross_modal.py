"""Cross-modal linear probe (Lin et al., CVPR 2023, arXiv 2301.06267).

Class-name texts are training examples beside the images (eq. 5): a linear head without bias on
features of unit length, at the fixed temperature 100, starts at the texts and learns by
cross-entropy from batches that are half images, half texts. Published settings: AdamW,
12800 iterations, batch 8, cosine after 50 warm-up steps from 1e-5; rate (1e-3, 1e-4) and weight
decay (0, 0.01, 1e-4) are chosen on validation, and, where the run selects by validation, so is
the iteration, looked at every 100. Without validation the constants `lr`, `weight_decay` count.

All settings of the grid are trained side by side on the same batches; the gradient of a linear
head needs no autograd.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vipbench import api
from vipbench.methods.shared.prototypes import Templates, one_hot, unit_texts

GRID = tuple((lr, decay) for lr in (1e-3, 1e-4) for decay in (0.0, 0.01, 1e-4))
LOOK = 100
BETAS, EPS = (0.9, 0.999), 1e-8


class CrossModal(api.Method):
    """A linear probe that learns from images and class-name texts alike."""

    name = "cross-modal"
    kind = "AD"
    paper = (
        "Lin et al., Multimodality Helps Unimodality: Cross-Modal Few-Shot Learning with "
        "Multimodal Models"
    )
    year = 2023
    cost = "seconds"
    published = api.Published(validation="min(k,4)", selection="best_val")

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """lr, weight_decay: where they are not searched. batch_size: images and texts
        together."""

        lr: api.Positive = 1e-3
        weight_decay: api.NonNegative = 0.01
        search: bool = True
        iterations: api.Count = 12800
        batch_size: api.Count = 8
        warmup: api.Whole = 50
        logit_scale: api.Positive = 100.0
        templates: Templates = "all"

        tunes = (
            api.Range("lr", 1e-4, 1e-2, log=True),
            api.Range("weight_decay", 1e-5, 1e-1, log=True),
        )

        def quick(self, info: api.CellInfo) -> CrossModal.HParams:
            """At most 1000 iterations."""
            return replace(self, iterations=min(1000, self.iterations))

    def __init__(self, task: api.Task, hparams: HParams) -> None:
        super().__init__(task, hparams)
        self.weight = nn.Parameter(unit_texts(task, hparams.templates).clone())  # (C,D)
        chosen = task.templates if hparams.templates == "all" else task.templates[:1]
        texts = [task.text_features(task.class_texts(t)) for t in chosen]
        self.texts = F.normalize(torch.cat(texts), dim=-1)  # (T*C,D)
        self.chosen = torch.tensor([hparams.lr, hparams.weight_decay], device=task.device)

    def forward(self, x: Tensor) -> Tensor:
        """(B,D) -> (B,C)."""
        logits: Tensor = self.hparams.logit_scale * F.normalize(x, dim=-1) @ self.weight.T
        return logits

    @torch.no_grad()
    def fit(self, support: api.Support) -> None:
        """All settings of the grid side by side: weights (G,C,D)."""
        hp, classes, val = self.hparams, self.task.n_classes, support.val
        search = hp.search and val is not None
        grid = torch.tensor(GRID if search else [(hp.lr, hp.weight_decay)]).to(self.weight)
        rate, decay = grid[:, :1, None], grid[:, 1:, None]  # (G,1,1)
        images, image_labels = F.normalize(support.plain, dim=-1), support.labels
        text_labels = torch.arange(classes).repeat(len(self.texts) // classes).to(image_labels)
        half = hp.batch_size // 2
        image_rows = self._rows("images", len(images), hp.batch_size - half)
        text_rows = self._rows("texts", len(self.texts), half)
        weight = self.weight.expand(len(grid), -1, -1).clone()
        first, second = torch.zeros_like(weight), torch.zeros_like(weight)
        best, kept = -1, (weight, 0)
        for step in range(hp.iterations):
            i, t = next(image_rows), next(text_rows)
            x = torch.cat([images[i], self.texts[t]])  # (B,D)
            target = one_hot(torch.cat([image_labels[i], text_labels[t]]), classes, x)
            wrong = (hp.logit_scale * x @ weight.mT).softmax(-1) - target  # (G,B,C)
            grad = hp.logit_scale / len(x) * wrong.mT @ x
            lr = self._rate(step, rate)
            weight = weight * (1 - lr * decay)
            first = first.lerp(grad, 1 - BETAS[0])
            second = second * BETAS[1] + (1 - BETAS[1]) * grad * grad
            size = second.sqrt() / math.sqrt(1 - BETAS[1] ** (step + 1)) + EPS
            weight = weight - lr / (1 - BETAS[0] ** (step + 1)) * first / size
            last = step + 1 == hp.iterations
            if val is not None and (last or (support.best_val and step % LOOK == 0)):
                logits = F.normalize(val.x, dim=-1) @ weight.mT  # (G,V,C)
                right = (logits.argmax(-1) == val.labels).sum(-1)
                # The first of equally good settings, and of equally good iterations.
                if int(right.max()) > best:
                    best, kept = int(right.max()), (weight, int(right.argmax()))
        if val is None:
            kept = weight, 0
        self.weight.copy_(kept[0][kept[1]])
        self.chosen = grid[kept[1]].clone()

    def _rate(self, step: int, rate: Tensor) -> Tensor:
        hp: CrossModal.HParams = self.hparams
        if step < hp.warmup:
            return 1e-5 + (rate - 1e-5) * step / hp.warmup
        share = (step - hp.warmup) / max(1, hp.iterations - hp.warmup)
        return rate * 0.5 * (1 + math.cos(math.pi * share))

    def _rows(self, purpose: str, n: int, batch: int) -> Iterator[Tensor]:
        """Batches of rows in ever new orders, an incomplete last one dropped."""
        order, batch = self.task.generator(f"cross-modal/{purpose}"), min(batch, n)
        while True:
            rows = torch.randperm(n, generator=order).to(self.weight.device)
            yield from (rows[s : s + batch] for s in range(0, n - batch + 1, batch))
