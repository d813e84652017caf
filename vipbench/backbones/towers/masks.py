"""What attention adds for rows that may not look at each other, as fused kernels want it.

On CUDA the memory-efficient kernel takes a mask in the queries' type whose strides, but for the
last, are multiples of `ALIGNED` entries; any other is converted or copied again in every layer.
Shapes: Q rows that look, T rows that are looked at.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

# Of 8 in some versions of PyTorch, of 16 in others.
ALIGNED = 16


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """seen (*,Q,T) bool -> (*,Q,T): 0 where a row may look, else -inf."""
    mask = _aligned_memory(seen, tuple(seen.shape), dtype)
    return mask.zero_().masked_fill_(~seen, -torch.inf)


def repeated(mask: Tensor, times: int) -> Tensor:
    """(n,Q,T) -> (times·n,Q,T), or as it is, (1,Q,T), where one serves all."""
    if times == 1 or len(mask) == 1:
        return mask
    room = _aligned_memory(mask, (times * len(mask), *mask.shape[1:]), mask.dtype)
    room.unflatten(0, (times, len(mask))).copy_(mask)
    return room


def causal(rows: int, like: Tensor) -> Tensor:
    """(T,T) for attention among `rows` rows of the type and device of `like`; made once."""
    return _causal(rows, like.dtype, like.device)


# Without a limit: a recorded step goes on to read what it was recorded with.
@functools.cache
def _causal(rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return additive(torch.ones(rows, rows, dtype=torch.bool, device=device).tril(), dtype)


def forget() -> None:
    """Make causal masks anew, where those that were made have another use."""
    _causal.cache_clear()


def queries_dtype(x: Tensor) -> torch.dtype:
    """The type that queries computed from x have: under autocast it is another."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _aligned_memory(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory for a mask; what lies between its rows is zero."""
    t = shape[-1]
    room = like.new_empty(*shape[:-1], -(-t // ALIGNED) * ALIGNED, dtype=dtype)
    room[..., t:] = 0
    return room[..., :t]
