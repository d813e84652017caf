"""Classification by description (Menon and Vondrick, ICLR 2023, arXiv 2210.07183), with the
maximum over descriptions, an aggregation that its official program offers.

The official program's scores are bare cosines, without the checkpoint's temperature; `compat`
gives them. It also writes the class name before each description; here symptoms hold none.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vipbench.methods.symptoms_mean import SymptomsMean


class SymptomsMax(SymptomsMean):
    """Per class the maximum over its symptoms of the cosine similarity, without any training."""

    name = "symptoms-max"

    def forward(self, x: Tensor) -> Tensor:
        """(B,D) -> (B,C)."""
        similarity = F.normalize(x, dim=-1) @ self.symptoms.flatten(0, 1).T  # (B,C*K)
        similarity = similarity.unflatten(-1, self.symptoms.shape[:2])  # (B,C,K)
        if self.mask is not None:
            similarity = similarity.masked_fill(~self.mask, -torch.inf)
        best: Tensor = similarity.amax(-1)
        return self.scale * best
