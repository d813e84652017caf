"""Gaussian discriminant analysis on image features (Wang et al., ICLR 2024, arXiv 2402.04087)."""

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

import vipbench
from vipbench import api


class GDA(api.Method):
    """Training-free: Gaussian classes with one shrunk covariance, added to the zero-shot logits."""

    name = "my-gda"
    kind = "TF"

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """alpha: weight of the Gaussian part."""

        alpha: float = 0.1

    def prepare(self, support):
        x, labels = normalize(support.plain, dim=-1), support.labels  # (N,D), (N,)
        means = torch.stack([x[labels == c].mean(0) for c in range(support.n_classes)])  # (C,D)
        cov = (x - means[labels]).T.cov()  # (D,D); zero at one shot: then the nearest mean
        shrunk = (len(x) - 1) * cov + (cov.trace() or 1.0) * torch.eye(x.shape[1]).to(x)
        self.weight = x.shape[1] * torch.linalg.solve(shrunk, means.T)  # (D,C)
        self.bias = -0.5 * (means * self.weight.T).sum(1)  # (C,)

    def forward(self, x):
        gauss = normalize(x, dim=-1) @ self.weight + self.bias  # (B,C)
        return self.task.cosine_logits(x, self.task.class_features()) + self.hparams.alpha * gauss


@vipbench.hookimpl
def register_methods(register):
    register(GDA)
