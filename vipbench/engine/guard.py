"""What a plugin must leave alone: frozen weights, shared texts, and the global random state."""

from __future__ import annotations

import hashlib
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


class SpoiltError(RuntimeError):
    """A plugin changed what other cells use; nothing of this process can be used any more."""


class GlobalRandomError(RuntimeError):
    """A plugin drew from, or seeded, a global random generator."""


class FrozenTexts(dict[Any, Tensor]):
    """Features of frozen texts, shared by cells: each with the version and the digest that it came
    with."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: dict[Any, tuple[int, bytes]] = {}

    def __setitem__(self, key: Any, value: Tensor) -> None:
        super().__setitem__(key, value)
        self.marks[key] = _version(value), digest(value)


class Weights:
    """Every tensor that a backbone has now, with the version and the SHA-256 of it in `arm`."""

    def __init__(self, backbone: ImageBackbone) -> None:
        self.backbone = backbone
        self.armed = False
        # Later it may also keep what it computed.
        self.tensors, self._parameters = _tensors(backbone)
        self._versions: list[int] = []
        self._digests: dict[str, bytes] = {}

    def arm(self) -> None:
        """Take versions and digests, once, before a plugin has the backbone."""
        if self.armed:
            return
        self._digests = {place: digest(value) for place, value in self.tensors.items()}
        self.renew()
        self.armed = True

    def renew(self) -> None:
        """Take the versions again, after a change that was undone."""
        self._versions = [_version(value) for value in self.tensors.values()]

    def written(self) -> str | None:
        """The place of a tensor that was written in place, as PyTorch counts it, or None."""
        now = [_version(value) for value in self.tensors.values()]
        if now == self._versions:
            return None
        places = zip(self.tensors, now, self._versions, strict=True)
        return next(place for place, new, old in places if new != old)

    def changed(self) -> str | None:
        """The place of a tensor whose bits are others, or that another one replaced, or None."""
        for place, value in self.tensors.items():
            if digest(value) != self._digests[place]:
                return place
        parameters = _tensors(self.backbone)[1]
        for place, value in self._parameters.items():
            other = parameters.get(place)
            if other is None or (other is not value and digest(other) != self._digests[place]):
                return place
        return None


class Guard:
    """Knows whether the towers and the frozen texts are as they were when it was armed, before
    any method of a plugin was run. Where it is not armed it finds nothing.

    sound: called after each check that finds nothing. weights: may be shared by guards.
    """

    def __init__(self, backbone: ImageBackbone, texts: FrozenTexts) -> None:
        self.sound: Callable[[], None] = lambda: None
        self.weights = Weights(backbone)
        self._texts = texts

    def arm(self) -> None:
        """From now on check; the weights are hashed once."""
        self.weights.arm()

    def check(self, who: str = "a plugin") -> None:
        """Raises SpoiltError, naming `who`, where a bit of a weight or of a text's features
        changed. Takes about half a second for each gigabyte."""
        self.compare(who)
        self.sound()

    def compare(self, who: str = "a plugin") -> None:
        """`check` in the midst of what a method does: what it encodes next is not yet sound."""
        if not self.weights.armed:
            return
        self.look(who)
        self._weights(who, self.weights.changed())
        for key, value in self._texts.items():
            if digest(value) != self._texts.marks[key][1]:
                raise _texts_changed(who)

    def look(self, who: str = "a plugin") -> None:
        """`compare` by the versions of the tensors alone: microseconds, and blind to what is
        written through `.data` or `.numpy()`."""
        if not self.weights.armed:
            return
        self._weights(who, self.weights.written())
        for key, value in self._texts.items():
            if _version(value) != self._texts.marks[key][0]:
                raise _texts_changed(who)

    def _weights(self, who: str, place: str | None) -> None:
        if place is not None:
            raise SpoiltError(
                f"{who} changed the backbone's frozen weights ({place.lstrip('.')}). Train a copy "
                "(`task.image_backbone.trainable_copy()`), or use a Tap"
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
        backbone = self.weights.backbone
        weights = _tensors(backbone)[0]
        copies = {place: value.detach().clone() for place, value in weights.items()}
        try:
            yield
        finally:
            changed = [p for p, value in weights.items() if not _same_bits(value, copies[p])]
            if changed:
                for place in changed:
                    weights[place].data.copy_(copies[place])
                # It may have computed other matrices from the changed ones, and kept them.
                backbone.to(backbone.device)
            self.weights.renew()


def _texts_changed(who: str) -> SpoiltError:
    return SpoiltError(
        f"{who} changed in place the features of texts that other cells use too. Write "
        "`x = x / y`, not `x /= y`"
    )


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
    if device.type != "cpu":
        _module(device).manual_seed(seed)
    mine = _states(device)
    try:
        yield
        seeded = torch.initial_seed() != seed
        if seeded or (not draws and not _same(mine, _states(device))):
            raise GlobalRandomError(
                f"{who} {'seeded' if seeded else 'drew from'} a global random generator; use "
                "`noise()` for noise and the task for initial values, which are drawn for each "
                "cell"
            )
    finally:
        _restore(before, device)


def digest(value: Tensor) -> bytes:
    """SHA-256 of a tensor's type, shape and bits."""
    found = hashlib.sha256(f"{value.dtype} {tuple(value.shape)}".encode())
    found.update(_bits(value).cpu().numpy().data)
    return found.digest()


def _bits(value: Tensor) -> Tensor:
    flat = value.detach().contiguous().reshape(-1)
    return (torch.view_as_real(flat) if flat.is_complex() else flat).view(torch.uint8)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(_bits(one), _bits(other))


def _version(value: Tensor) -> int:
    # Tensors that were made in inference mode have none.
    return 0 if value.is_inference() else value._version


def _tensors(root: object) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Every tensor that hangs on a backbone, by its place; and those that modules hold."""
    found: dict[str, Tensor] = {}
    held: dict[str, Tensor] = {}
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
                held.setdefault(f"{place}.{name}", tensor)
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
    return found, {place: value for place, value in held.items() if place in found}


def _states(device: torch.device) -> list[Any]:
    kind, keys, *rest = np.random.get_state()
    states: list[Any] = [random.getstate(), (kind, keys, *rest), torch.get_rng_state()]
    if device.type != "cpu":
        states.append(_module(device).get_rng_state(device))
    return states


def _module(device: torch.device) -> Any:
    return torch.get_device_module(device)


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
    if device.type != "cpu":
        _module(device).set_rng_state(states[3], device)
