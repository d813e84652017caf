"""What a method learned in one cell, as bytes to keep beside the record."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from safetensors.torch import save
from torch import Tensor

from vipbench.api import Method

# Trained towers and caches of features are larger, and can be made again by running the cell.
MOST_BYTES = 5_000_000

Versions = Mapping[str, tuple[int, int]]


def versions(method: Method) -> Versions:
    """Buffer -> what tells later whether it was made or written since."""
    return {name: (id(b), b._version) for name, b in method.named_buffers()}


def learned(method: Method, before: Versions) -> tuple[bytes | None, dict[str, Any]]:
    """A safetensors file of the trained parameters and of the buffers that were made or written
    after `before` was taken, and what the record says of it.

    Parameters come first, then buffers by size, as long as all stay within MOST_BYTES; what does
    not fit is named as left out. None where nothing is kept.
    """
    noise = method.noise()
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    buffers = {
        name: b
        for name, b in method.named_buffers()
        if before.get(name) != (id(b), b._version) and name not in noise
    }
    kept: dict[str, Tensor] = {}
    left_out: dict[str, int] = {}
    total = 0
    # All parameters or none: half of them are of no use.
    fits = sum(map(_size, trained.values())) <= MOST_BYTES
    for name, value in [*trained.items(), *sorted(buffers.items(), key=lambda b: _size(b[1]))]:
        size = _size(value)
        if (name in trained and not fits) or total + size > MOST_BYTES:
            left_out[name] = size
            continue
        kept[name] = value.detach().cpu().contiguous().clone()
        total += size
    told: dict[str, Any] = {}
    if left_out:
        told["left_out"] = left_out
    if not kept:
        return None, told
    data = save(kept)
    told["tensors"] = {name: list(value.shape) for name, value in kept.items()}
    return data, {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), **told}


def _size(value: Tensor) -> int:
    return value.numel() * value.element_size()
