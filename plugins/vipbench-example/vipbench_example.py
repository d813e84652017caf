"""SimpleShot (Wang, Chao, Weinberger, van der Maaten 2019, arXiv 1911.04623), variant CL2N.

Features are centred, scaled to unit length, and classified by the nearest class mean. The paper
centres by the mean of its base classes; in a benchmark without base classes the support set's own
mean takes that place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

import vipbench
from vipbench import api


class SimpleShot(api.Method):
    """The nearest class mean of centred, normalised image features; no text, no training."""

    name = "simpleshot"
    kind = "TF"
    paper = (
        "Wang et al., SimpleShot: Revisiting Nearest-Neighbor Classification for Few-Shot Learning"
    )
    year = 2019
    needs: frozenset[str] = frozenset()

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """centre: subtract the support set's mean (CL2N); off leaves plain unit length (L2N)."""

        centre: bool = True

    def prepare(self, support: api.Support) -> None:
        """Class means (C,D) of the support set."""
        x = support.plain  # (N,D)
        mean = x.mean(0) if self.hparams.centre else torch.zeros_like(x[0])
        self.origin = mean  # (D,)
        member = one_hot(support.labels, support.n_classes).to(x)  # (N,C)
        self.means = member.T @ normalize(x - mean, dim=-1) / member.sum(0).unsqueeze(1)

    def forward(self, x: Tensor) -> Tensor:
        """(B,D) -> (B,C): minus the squared distance to each class mean."""
        x = normalize(x - self.origin, dim=-1)
        return -(x.unsqueeze(1) - self.means).square().sum(-1)


@vipbench.hookimpl
def register_methods(register: Any) -> None:
    """Called by vipbench with a function that takes a Method class."""
    register(SimpleShot)
