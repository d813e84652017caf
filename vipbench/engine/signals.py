"""SIGINT and SIGTERM while a run goes on. No torch here."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Signal:
    """The signal that arrived, and whether one did."""

    number: int | None = None

    def __call__(self) -> bool:
        """Whether the run is to stop."""
        return self.number is not None


@contextmanager
def stop_signals() -> Iterator[Signal]:
    """Turn the first SIGINT or SIGTERM into a flag; a second one ends the process."""
    stopped = Signal()

    def handle(number: int, frame: FrameType | None) -> None:
        if stopped.number is not None:
            # The worker ends by itself when its pipe closes with this process.
            os._exit(128 + number)
        stopped.number = number

    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
