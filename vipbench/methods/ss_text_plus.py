"""SS-Text+ (Silva-Rodríguez et al., MICCAI 2025, arXiv 2506.17500): SS-Text, class by class.

w_c = (1/N)(1/λ_c)(1/τ) Σ_{i of c} f_i + t_c with λ_c = 1/n_c (at least 1e-3), n_c the support
images of class c; a class without any keeps its text. Then each w_c is pushed from the others:
w_c minus the unit vector along 2w_c - mean_k w_k.
"""

from __future__ import annotations

import torch.nn.functional as F

from vipbench import api
from vipbench.methods.shared.prototypes import one_hot
from vipbench.methods.ss_text import SSText


class SSTextPlus(SSText):
    """SS-Text with a weight for each class and a push from the other classes."""

    name = "ss-text-plus"

    def prepare(self, support: api.Support) -> None:
        """The closed form."""
        hp, text, x = self.hparams, self.prototypes, support.plain
        if hp.normalise:
            text, x = F.normalize(text, dim=-1), F.normalize(x, dim=-1)
        member = one_hot(support.labels, self.task.n_classes, x)  # (N,C)
        # 1/λ_c = n_c up to 1/floor; 0 for a class without images.
        weight = member.sum(0).clamp(max=1 / hp.floor) / len(x)  # (C,)
        scale = self.task.logit_scale if hp.tau is None else 1 / hp.tau
        mixed = weight.unsqueeze(1) * scale * (member.T @ x) + text
        self.prototypes = mixed - F.normalize(2 * mixed - mixed.mean(0), dim=-1)
