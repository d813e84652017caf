"""Bayesian prompt learning (Derakhshani et al., ICCV 2023, arXiv 2210.02390), eq. 6–8.

A context whose shift is a Gaussian given the image: mean and log-variance come from two networks
of three layers on the image feature (D -> D/2 -> D/2 -> W, ELU). The prediction is the mean of the
class probabilities over L = 10 draws; loss: its negative logarithm at the true class + 0.001·KL
to the standard normal, the mean over W. Published: context from "a photo of a", SGD 1e-3,
batch 1. ViP's comparison calls the method VPT, as the authors' program does.

All images of a batch share the L draws, which the paper's batch of one cannot tell; draws for
scoring are fixed for a cell, so that an image's scores do not depend on others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vipbench import api


class BayesCoOp(api.Method):
    """Context vectors with a Gaussian shift for each image, averaged over draws."""

    name = "bayes-coop"
    kind = "TP"
    paper = "Derakhshani et al., Bayesian Prompt Learning for Image-Language Model Generalization"
    year = 2023
    cost = "hours"
    pads = True

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """samples: L. kl: weight of the KL term. n_ctx: M where `context_init` is empty."""

        samples: api.Count = 10
        kl: api.NonNegative = 1e-3
        n_ctx: api.Count = 4
        context_init: str = "a photo of a"
        lr: api.Positive = 1e-3
        batch_size: api.Count = 1
        epochs: api.Count = 50

        tunes = (
            api.Range("lr", 1e-4, 1e-2, log=True),
            api.Range("kl", 1e-4, 1e-1, log=True),
        )

        def recipe(self, info: api.CellInfo) -> api.Recipe:
            """Prompt SGD."""
            return api.Recipe(lr=self.lr, epochs=self.epochs, batch_size=self.batch_size)

        def quick(self, info: api.CellInfo) -> BayesCoOp.HParams:
            """Two draws, larger batches, few epochs."""
            return type(self)(
                samples=min(2, self.samples),
                kl=self.kl,
                n_ctx=self.n_ctx,
                context_init=self.context_init,
                lr=self.lr,
                batch_size=max(16, self.batch_size),
                epochs=min(10, self.epochs),
            )

    def __init__(self, task: api.Task, hparams: HParams) -> None:
        super().__init__(task, hparams)
        if hparams.context_init:
            context = task.backbone.embed_words(hparams.context_init)
        else:
            context = task.normal("context", hparams.n_ctx, task.info.width)
        self.context = nn.Parameter(context.clone())  # (M,W)
        self.prompts = task.embed([("", f"{name}.") for name in task.names], len(context))  # (C,)
        self.mean = self._net("mean")
        self.log_variance = self._net("log_variance")
        self.draws = torch.zeros(hparams.samples, task.info.width, device=task.device)

    def _net(self, name: str) -> nn.Sequential:
        dim, inner, width = self.task.info.dim, self.task.info.dim // 2, self.task.info.width
        return nn.Sequential(
            self.task.linear(f"{name}.0", dim, inner),
            nn.ELU(),
            self.task.linear(f"{name}.2", inner, inner),
            nn.ELU(),
            self.task.linear(f"{name}.4", inner, width),
        )

    def noise(self) -> dict[str, tuple[int, ...]]:
        """The L draws (L,W)."""
        return {"draws": (self.hparams.samples, self.task.info.width)}

    def forward(self, x: Tensor) -> Tensor:
        """(B,D) -> log-probabilities (B,C)."""
        return self._predict(x, *self._posterior(x))

    def loss(self, batch: api.Batch) -> Tensor:
        """The negative log-probability of the true class, and the KL term."""
        mean, log_variance = self._posterior(batch.x)
        kl = 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance).mean(-1)  # (B,)
        log_p = self._predict(batch.x, mean, log_variance)
        picked = log_p.gather(-1, batch.labels.unsqueeze(-1)).squeeze(-1)
        return batch.mean(self.hparams.kl * kl - picked)

    def predict(self, x: Tensor) -> Tensor:
        """In smaller chunks: every image has L·C texts of its own."""
        return torch.cat([self(chunk) for chunk in x.split(max(1, 256 // self.hparams.samples))])

    def _posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B,D) -> mean and log-variance (B,W) each."""
        x = F.normalize(x, dim=-1)
        return self.mean(x), self.log_variance(x)

    def _predict(self, x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
        shift = mean + self.draws[:, None, :] * (0.5 * log_variance).exp()  # (L,B,W)
        context = self.context + shift[:, :, None, None, :]  # (L,B,1,M,W)
        classes = self.task.encode_text(self.prompts, context)  # (L,B,C,D)
        log_p = self.task.cosine_logits(x, classes).log_softmax(-1)  # (L,B,C)
        return log_p.logsumexp(0) - math.log(len(log_p))
