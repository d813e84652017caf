"""What a plugin must leave alone: frozen weights, shared texts, and the global random state."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vipbench.api import ImageBackbone

# How deep into a backbone's own objects its weights are looked for.
DEPTH = 6
_BY_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class SpoiltError(RuntimeError):
    """A plugin changed what other cells use; nothing of this process can be used any more."""


class GlobalRandomError(RuntimeError):
    """A plugin drew from, or seeded, a global random generator."""


class FrozenTexts(dict[Any, Tensor]):
    """Features of frozen texts, shared by cells: each with the checksum that it came with."""

    def __init__(self) -> None:
        super().__init__()
        self.sums: dict[Any, Tensor] = {}

    def __setitem__(self, key: Any, value: Tensor) -> None:
        super().__setitem__(key, value)
        self.sums[key] = checksum(value)


class Guard:
    """Knows by checksums whether the towers and the frozen texts are as they were.

    Takes its checksums when it is made, before any method is built. sound: called after each
    check that finds nothing.
    """

    def __init__(self, backbone: ImageBackbone, texts: FrozenTexts) -> None:
        self.sound: Callable[[], None] = lambda: None
        self._backbone = backbone
        self._weights = _tensors(backbone)
        self._texts = texts
        self._sums = _sums(self._weights.values())

    def check(self, who: str = "a plugin") -> None:
        """Raises SpoiltError, naming `who`, where a weight or a text's features changed."""
        self.compare(who)
        self.sound()

    def compare(self, who: str = "a plugin") -> None:
        """`check` in the midst of what a method does: what it encodes next is not yet sound."""
        if _sums(self._weights.values()) != self._sums:
            raise SpoiltError(
                f"{who} changed the backbone's frozen weights. Train a copy "
                "(`task.image_backbone.trainable_copy()`), or use a Tap"
            )
        kept = list(self._texts)
        if _sums(self._texts[key] for key in kept) != _values(self._texts.sums[k] for k in kept):
            raise SpoiltError(
                f"{who} changed in place the features of texts that other cells use too. Write "
                "`x = x / y`, not `x /= y`"
            )

    @contextmanager
    def watch(self, who: str) -> Iterator[None]:
        """`check` after the block, also where it failed."""
        try:
            yield
        except SpoiltError:
            raise
        except Exception:
            self.check(who)
            raise
        self.check(who)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """The block's changes of weights are undone; a copy of the weights is held meanwhile."""
        copies = {name: value.detach().clone() for name, value in self._weights.items()}
        try:
            yield
        finally:
            if _sums(self._weights.values()) != self._sums:
                for name, value in self._weights.items():
                    value.data.copy_(copies[name])
                # It may have computed other matrices from the changed ones, and kept them.
                self._backbone.to(self._backbone.device)


@contextmanager
def own_randomness(
    seed: int, who: str, device: torch.device, draws: bool = False
) -> Iterator[None]:
    """Global generators hold `seed` inside the block, and what they held before after it: whatever
    the block does with them reaches no other cell, and is the same every time.

    draws: whether it may draw from them (PyTorch's layers do while they are built).
    Raises GlobalRandomError where it drew all the same, or seeded them.
    """
    before = _states(device)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    mine = _states(device)
    try:
        yield
        seeded = torch.initial_seed() != seed
        if seeded or (not draws and not _same(mine, _states(device))):
            raise GlobalRandomError(
                f"{who} {'seeded' if seeded else 'drew from'} a global random generator; take "
                "noise as `noise()` gives it and initial values from the task, which are drawn "
                "for each cell"
            )
    finally:
        _restore(before, device)


def checksum(value: Tensor) -> Tensor:
    """A scalar that any change of a few values changes: the bits, added up as integers."""
    flat = value.detach().contiguous()
    if flat.is_complex():
        flat = torch.view_as_real(flat)
    bits = (
        flat.view(torch.uint8)
        if flat.dtype == torch.bool
        else flat.view(_BY_SIZE[flat.element_size()])
    )
    return bits.sum(dtype=torch.int64)


def _sums(tensors: Any) -> list[int]:
    return _values(checksum(value) for value in tensors)


def _values(sums: Any) -> list[int]:
    # By device together: a value at a time would wait for a GPU each time.
    every = list(sums)
    return [] if not every else torch.stack([s.cpu() for s in every]).tolist()


def _tensors(root: object) -> dict[str, Tensor]:
    """Every tensor that hangs on a backbone, by its place."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()

    def walk(value: object, place: str, depth: int) -> None:
        if depth > DEPTH or id(value) in seen:
            return
        if isinstance(value, Tensor):
            seen.add(id(value))
            found[place] = value
        elif isinstance(value, nn.Module):
            seen.add(id(value))
            for name, tensor in [*value.named_parameters(), *value.named_buffers()]:
                walk(tensor, f"{place}.{name}", depth)
        elif isinstance(value, Mapping):
            seen.add(id(value))
            for key, item in list(value.items()):
                walk(item, f"{place}[{key}]", depth + 1)
        elif isinstance(value, list | tuple):
            seen.add(id(value))
            for i, item in enumerate(value):
                walk(item, f"{place}[{i}]", depth + 1)
        elif not isinstance(value, type) and getattr(value, "__dict__", None):
            seen.add(id(value))
            for key, item in list(vars(value).items()):
                walk(item, f"{place}.{key}", depth + 1)

    walk(root, "", 0)
    return found


def _states(device: torch.device) -> list[Any]:
    kind, keys, *rest = np.random.get_state()
    states: list[Any] = [random.getstate(), (kind, keys, *rest), torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _same(one: list[Any], other: list[Any]) -> bool:
    return (
        one[0] == other[0]
        and all(np.array_equal(a, b) for a, b in zip(one[1], other[1], strict=True))
        and all(torch.equal(a, b) for a, b in zip(one[2:], other[2:], strict=True))
    )


def _restore(states: list[Any], device: torch.device) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[3], device)
