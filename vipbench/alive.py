"""Signs of life from long work of which nothing is seen outside, such as hashing in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_listeners: list[Callable[[], None]] = []


def sign() -> None:
    """Called by loops that may take minutes, once for each step."""
    for listener in _listeners:
        listener()


@contextmanager
def reported(listener: Callable[[], None]) -> Iterator[None]:
    """Within the block, `listener` is called for each sign."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
