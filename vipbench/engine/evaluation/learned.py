"""What a method learned in one cell, as bytes to keep beside the record."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from vipbench.api import Method
from vipbench.errors import UsageError

# Trained towers and caches of features are larger, and can be made again by running the cell.
MOST_BYTES = 5_000_000

Versions = Mapping[str, tuple[int, int]]


def versions(method: Method) -> Versions:
    """Buffer or frozen parameter -> what tells later whether it was made or written since."""
    return {name: (id(value), value._version) for name, value in _kept(method).items()}


def learned_tensors(method: Method, before: Versions) -> dict[str, Tensor]:
    """The trained parameters, and the buffers and frozen parameters that were made or written
    after `before` was taken; noise is none of them."""
    noise = method.noise()
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    written = {
        name: value
        for name, value in _kept(method).items()
        if before.get(name) != (id(value), value._version) and name not in noise
    }
    return {**trained, **written}


def _kept(method: Method) -> dict[str, Tensor]:
    """Buffers and frozen parameters, by name."""
    frozen = {name: p for name, p in method.named_parameters() if not p.requires_grad}
    return {**frozen, **dict(method.named_buffers())}


def fill(method: Method, tensors: Mapping[str, Tensor]) -> None:
    """Put learned `tensors` into a newly built method and make it ready to score. Raises UsageError
    for one that it has no place for."""
    device = method.task.device
    parameters, buffers = dict(method.named_parameters()), dict(method.named_buffers())
    for name, value in tensors.items():
        value = value.to(device)
        held = parameters.get(name, buffers.get(name))
        if held is not None and held.shape == value.shape:
            with torch.no_grad():
                held.copy_(value)
        elif "." in name:
            raise UsageError(f"'{method.name}' has no '{name}' of shape {tuple(value.shape)}")
        else:  # made while preparing on a support set
            setattr(method, name, nn.Parameter(value) if name in parameters else value)
    for name, shape in method.noise().items():
        noise = torch.randn(*shape, generator=method.task.generator(f"noise-eval/{name}"))
        setattr(method, name, noise.to(device))
    method.eval()


def learned(method: Method, before: Versions) -> tuple[bytes | None, dict[str, Any]]:
    """A safetensors file of the trained parameters and of the buffers that were made or written
    after `before` was taken, and what the record says of it.

    Parameters come first, then buffers by size, as long as all stay within MOST_BYTES; what does
    not fit is named as left out. None where nothing is kept.
    """
    found = learned_tensors(method, before)
    parameters = dict(method.named_parameters())
    trained = {name: value for name, value in found.items() if name in parameters}
    buffers = {name: value for name, value in found.items() if name not in parameters}
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
    description: dict[str, Any] = {}
    if left_out:
        description["left_out"] = left_out
    if not kept:
        return None, description
    data = save(kept)
    description["tensors"] = {name: list(value.shape) for name, value in kept.items()}
    return data, {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), **description}


def _size(value: Tensor) -> int:
    return value.numel() * value.element_size()
