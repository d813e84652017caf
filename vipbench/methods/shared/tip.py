"""What Tip-Adapter and Tip-Adapter-F share: the cache, its logits, the search of α and β."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vipbench import api
from vipbench.methods.shared.prototypes import views_of


def cache_keys(support: api.Support, passes: int, start: int = 0) -> Tensor:
    """(N,D): unit-length mean over augmented views of the tower's own features."""
    return F.normalize(torch.stack(views_of(support, passes, start)).mean(0), dim=-1)


def cache_logits(affinity: Tensor, values: Tensor, beta: Tensor | float) -> Tensor:
    """exp(-β(1 - affinity)) · values: affinity (B,N), values (N,C) -> (B,C)."""
    return torch.exp(-beta * (1 - affinity)) @ values


def search(
    text_logits: Tensor,
    affinity: Tensor,
    values: Tensor,
    labels: Tensor,
    scales: tuple[float, float],
    steps: tuple[int, int],
) -> tuple[float, float] | None:
    """(β, α) that are right most often on validation: text_logits (V,C), affinity (V,N),
    labels (V,). scales, steps: of β and α; β is the outer loop, only a strictly higher accuracy
    replaces what was found before, and None is the answer where nothing is right."""
    best, found = 0, None
    for i in range(steps[0]):
        beta = i * (scales[0] - 0.1) / steps[0] + 0.1
        cache = cache_logits(affinity, values, beta)
        for j in range(steps[1]):
            alpha = j * (scales[1] - 0.1) / steps[1] + 0.1
            right = int(((text_logits + alpha * cache).argmax(-1) == labels).sum())
            if right > best:
                best, found = right, (beta, alpha)
    return found
