"""What a method's scores must be."""

from __future__ import annotations

import torch
from torch import Tensor


def checked_scores(scores: object, name: str, expected: tuple[int, int]) -> Tensor:
    """`scores` as float32 (N,C) on the CPU. Raises ValueError, naming the method, for another shape
    than `expected`, integers, NaN and infinite values."""
    if not isinstance(scores, Tensor) or tuple(scores.shape) != expected:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"method '{name}' gave scores of shape {got}; expected {expected} "
            "(test images, classes)"
        )
    if not scores.is_floating_point():
        raise ValueError(f"method '{name}' gave scores of type {scores.dtype}")
    if not bool(torch.isfinite(scores).all()):
        raise ValueError(f"method '{name}' gave scores that are not finite numbers (NaN or inf)")
    return scores.float().cpu()
