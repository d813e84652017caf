"""CLAP, class-adaptive linear probe (Silva-Rodríguez et al., CVPR 2024, arXiv 2312.12730).

Prototypes w_c start at the text features t_c; loss: cross-entropy + mean_c λ_c‖w_c - t_c‖²
(eq. 8), λ_c fixed before training: the mean zero-shot probability of the true class over the
support images of class c. Logits are cosines times the checkpoint's temperature. Published: SGD
0.1, momentum 0.9, no weight decay, 300 epochs, batch 256 drawn from the features of 20 augmented
passes together, as many batches an epoch as one pass has; last epoch, no validation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vipbench import api
from vipbench.methods.shared.prototypes import one_hot, views_of
from vipbench.methods.zs_lp import ZSLP


class CLAP(ZSLP):
    """A linear probe held to the class texts, each class as strongly as zero-shot knows it."""

    name = "clap"
    pads = True

    @dataclass(frozen=True)
    class HParams(ZSLP.HParams):
        """passes: augmented passes over the support images. penalty: factor of the second term."""

        penalty: api.NonNegative = 1.0

        tunes = (
            api.Range("lr", 1e-2, 1.0, log=True),
            api.Range("penalty", 0.1, 10.0, log=True),
        )

    def __init__(self, task: api.Task, hparams: HParams) -> None:
        super().__init__(task, hparams)
        self.text = self.prototypes.detach().clone()  # (C,D)
        self.strength = torch.ones_like(self.text[:, 0])  # λ (C,)

    def prepare(self, support: api.Support) -> None:
        """λ, over all augmented images. A class without any takes the mean of the others."""
        x = torch.cat(views_of(support, support.n_views))  # (V*N,D)
        labels = support.labels.repeat(len(x) // len(support.labels))
        known = self.task.cosine_logits(x, self.text).softmax(-1)  # (V*N,C)
        member = one_hot(labels, self.task.n_classes, known)
        count = member.sum(0)
        mean = (known * member).sum(0) / count.clamp(min=1)
        self.strength = torch.where(count > 0, mean, mean[count > 0].mean())

    def loss(self, batch: api.Batch) -> Tensor:
        """Cross-entropy and the distance to the texts."""
        entropy = super().loss(batch)
        assert isinstance(entropy, Tensor)
        distance = (self.prototypes - self.text).square().sum(-1)  # (C,)
        total: Tensor = entropy + self.hparams.penalty * (self.strength * distance).mean()
        return total
