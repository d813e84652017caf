"""SS-Text (Silva-Rodríguez et al., MICCAI 2025, arXiv 2506.17500): a closed form.

Class weights w_c = (1/N)(1/λ)(1/τ) Σ_{i of c} f_i + t_c with λ = 1/N (at least 1e-3) and 1/τ the
checkpoint's temperature; image features f and texts t as the towers give them; logits are
cosines times the temperature. Needs no validation and no balanced support set.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from vipbench import api
from vipbench.methods.shared.prototypes import Templates, one_hot, raw_texts


class SSText(api.Method):
    """Class texts plus the scaled sum of each class's support features, without any training."""

    name = "ss-text"
    kind = "TF"
    paper = (
        "Silva-Rodríguez et al., Few-Shot, Now for Real: Medical VLMs Adaptation without Balanced "
        "Sets or Validation"
    )
    year = 2025
    cost = "seconds"

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """tau: None is the checkpoint's. floor: the least λ. normalise: give f and t unit length
        first, which the official program does not."""

        tau: api.Positive | None = None
        floor: api.Positive = 1e-3
        normalise: bool = False
        templates: Templates = "first"

        tunes = (api.Range("tau", 1e-3, 1.0, log=True),)

    def __init__(self, task: api.Task, hparams: HParams) -> None:
        super().__init__(task, hparams)
        self.prototypes = raw_texts(task, hparams.templates)  # (C,D)

    def prepare(self, support: api.Support) -> None:
        """The closed form."""
        hp, text, x = self.hparams, self.prototypes, support.plain
        if hp.normalise:
            text, x = F.normalize(text, dim=-1), F.normalize(x, dim=-1)
        member = one_hot(support.labels, self.task.n_classes, x)  # (N,C)
        weight = 1 / (len(x) * max(1 / len(x), hp.floor))
        scale = self.task.logit_scale if hp.tau is None else 1 / hp.tau
        self.prototypes = weight * scale * (member.T @ x) + text

    def forward(self, x: Tensor) -> Tensor:
        """(B,D) -> (B,C)."""
        return self.task.cosine_logits(x, self.prototypes)
