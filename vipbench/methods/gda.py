"""Gaussian discriminant analysis beside the texts (Wang et al., ICLR 2024, arXiv 2402.04087).

Eq. 4–6: classes are Gaussians with one covariance, of features of unit length. Its inverse is the
shrunk estimate D·((N-1)Σ + tr(Σ)·I)⁻¹; weights w_c = Σ⁻¹μ_c, b_c = log(1/C) - ½μ_cᵀΣ⁻¹μ_c.
Logits: 100·f·T + α·(f·w + b). As in the official program, features are those of ten augmented
passes, and α is the best of 1e-4 … 100 on validation; without validation it is 0.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vipbench import api
from vipbench.methods.shared.prototypes import Templates, in_double, one_hot, unit_texts, views_of

ALPHAS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)


class GDA(api.Method):
    """Zero-shot logits plus those of Gaussian classes with one covariance, without training."""

    name = "gda"
    kind = "TF"
    paper = "Wang et al., A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation"
    year = 2024
    cost = "seconds"
    published = api.Published(validation="full")

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """alpha: weight of the Gaussian part where it is not searched. passes: augmented passes
        over the support images. logit_scale: of the text logits."""

        alpha: api.NonNegative = 0.1
        search: bool = True
        passes: api.Whole = 10
        logit_scale: api.Positive = 100.0
        templates: Templates = "first"

        tunes = (api.Range("alpha", 1e-4, 100.0, log=True),)

        def recipe(self, info: api.CellInfo) -> api.Recipe:
            """Nothing is trained; the views are asked for."""
            return api.Recipe(epochs=0, views=api.Views(count=self.passes, scale=(0.5, 1.0)))

    def __init__(self, task: api.Task, hparams: HParams) -> None:
        super().__init__(task, hparams)
        self.text = unit_texts(task, hparams.templates)  # (C,D)
        self.weight = torch.zeros_like(self.text)  # (C,D)
        self.bias = torch.zeros_like(self.text[:, 0])  # (C,)
        self.alpha = torch.tensor(hparams.alpha, device=task.device)

    def prepare(self, support: api.Support) -> None:
        """Means and covariance, in double precision. Without any spread (one shot, one view) the
        covariance is the identity. A class without images gets the mean Gaussian logit of the
        others, so that its text decides."""
        views = views_of(support, self.hparams.passes)
        x = in_double(F.normalize(torch.cat(views), dim=-1))  # (V*N,D)
        labels, dim = support.labels.repeat(len(views)).to(x.device), x.shape[1]
        member = one_hot(labels, self.task.n_classes, x)
        count = member.sum(0)
        means = (member.T @ x) / count.clamp(min=1).unsqueeze(1)  # (C,D)
        centred = x - means[labels]
        scatter = centred.T @ centred  # (N-1)·Σ, for the centred features have mean 0
        trace = float(scatter.trace()) / max(len(x) - 1, 1)
        shrunk = scatter + (trace or 1.0) * torch.eye(dim).to(x)
        weight = dim * torch.linalg.solve(shrunk, means.T).T  # (C,D)
        bias = -math.log(len(means)) - 0.5 * (weight * means).sum(1)
        seen = count > 0
        weight[~seen], bias[~seen] = weight[seen].mean(0), bias[seen].mean()
        self.weight, self.bias = weight.to(self.text), bias.to(self.text)

    def forward(self, x: Tensor) -> Tensor:
        """(B,D) -> (B,C)."""
        text, gauss = self._parts(x)
        return text + self.alpha * gauss

    def finish(self, support: api.Support) -> None:
        """Search α on validation; only a strictly higher accuracy replaces what was found."""
        if support.val is None or not self.hparams.search:
            return
        text, gauss = self._parts(support.val.x)
        best = 0
        for alpha in ALPHAS:
            right = int(((text + alpha * gauss).argmax(-1) == support.val.labels).sum())
            if right > best:
                best = right
                self.alpha.fill_(alpha)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.normalize(x, dim=-1)
        return self.hparams.logit_scale * x @ self.text.T, x @ self.weight.T + self.bias
