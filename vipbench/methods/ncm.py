"""Nearest class mean on features (Mensink et al., TPAMI 2013; Snell et al., NeurIPS 2017).

The class whose mean support feature is nearest by cosine. `centre` subtracts the mean of the
support features first, as SimpleShot does with the mean of its base classes (Wang et al. 2019).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vipbench import api
from vipbench.methods.shared.prototypes import one_hot

UNSEEN = -1e4


class NCM(api.Method):
    """The class with the nearest mean of support features, without texts or training."""

    name = "ncm"
    kind = "TF"
    paper = "Mensink et al., Distance-Based Image Classification: Generalizing to New Classes"
    year = 2013
    cost = "seconds"
    needs = frozenset()

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """centre: subtract the support set's mean feature. logit_scale: makes probabilities of
        the cosines; it does not change which class wins."""

        centre: bool = False
        logit_scale: api.Positive = 100.0

    def __init__(self, task: api.Task, hparams: HParams) -> None:
        super().__init__(task, hparams)
        self.means = torch.zeros(task.n_classes, task.image_backbone.dim, device=task.device)
        self.centre = self.means[0].clone()  # (D,)
        self.unseen = self.means[:, 0].clone()  # (C,)

    def prepare(self, support: api.Support) -> None:
        """The means, of features of unit length. A class without images is never predicted."""
        if self.hparams.centre:
            self.centre = F.normalize(support.plain, dim=-1).mean(0)
        x = self._unit(support.plain)
        member = one_hot(support.labels, self.task.n_classes, x)  # (N,C)
        count = member.sum(0)
        self.means = F.normalize(member.T @ x / count.clamp(min=1).unsqueeze(1), dim=-1)
        self.unseen = (count == 0).to(x) * UNSEEN

    def forward(self, x: Tensor) -> Tensor:
        """(B,D) -> (B,C)."""
        logits: Tensor = self.hparams.logit_scale * self._unit(x) @ self.means.T + self.unseen
        return logits

    def _unit(self, x: Tensor) -> Tensor:
        return F.normalize(F.normalize(x, dim=-1) - self.centre, dim=-1)
