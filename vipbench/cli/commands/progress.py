"""How far a run is: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Protocol

from vipbench import trust
from vipbench.cli.commands.text import duration
from vipbench.cli.terminal import raw
from vipbench.errors import printable

# A log gets its first line after this time, in seconds, and then ever fewer.
FIRST_LINE, RAREST_LINE = 10.0, 300.0


class Reporter(Protocol):
    """What shows the progress, counted in cells."""

    def start(self, total: int) -> None:
        """`total` cells are to be run from now on."""

    def update(self, done: int, begun: float, failed: int, now: str) -> None:
        """`done` cells have ended, of which `failed` failed; what is done of the cells in work
        comes to `begun` whole ones; `now` is their row."""

    def line(self, text: str) -> None:
        """A line of its own."""

    def stop(self) -> None:
        """No more is to come. Stopping twice is no error."""


def reporter() -> Reporter:
    """A bar where standard output is a terminal that can show one, else log lines."""
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        return Bar()
    return Log()


def remaining(elapsed: float, completed: float, total: int) -> float | None:
    """Seconds to go at the pace so far; None where too little tells yet."""
    if completed < max(3, total / 20) or elapsed < 1:
        return None
    return elapsed * (total - completed) / completed


class Log:
    """Lines without control characters, the first after some seconds, then ever fewer."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun = self._last = clock()
        self._total = 0

    def start(self, total: int) -> None:
        """See Reporter."""
        self._total = total
        self._begun = self._last = self._clock()

    def update(self, done: int, begun: float, failed: int, now: str) -> None:
        """See Reporter."""
        moment = self._clock()
        elapsed = moment - self._begun
        if moment - self._last < min(max(FIRST_LINE, elapsed / 4), RAREST_LINE):
            return
        self._last = moment
        left = remaining(elapsed, done + begun, self._total)
        parts = [f"{done:,} of {self._total:,} cells done"]
        parts += [f"{failed:,} failed"] if failed else []
        parts += [f"{duration(elapsed)} gone"]
        parts += [f"about {duration(left)} left"] if left is not None else []
        parts += [f"now {now}"] if now else []
        self.line(f"[{time.strftime('%H:%M:%S')}] {', '.join(parts)}")

    def line(self, text: str) -> None:
        """See Reporter."""
        print(text, flush=True)

    def stop(self) -> None:
        """See Reporter."""


class Bar:
    """A rich bar with the time to go; lines scroll by above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._console = Console(file=raw(sys.stdout), markup=False, highlight=False, emoji=False)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[count]}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            TextColumn("{task.description}", markup=False),
            console=self._console,
            transient=True,
        )
        self._status = self._console.status("reading data and weights")
        self._status.start()
        trust.before_questions(self._status.stop)
        # rich hides the cursor; a second Ctrl-C would leave it hidden.
        self._console.show_cursor(True)
        self._task = self._progress.add_task("", total=None, count="", left="")
        self._total = 0
        self._begun = 0.0

    def start(self, total: int) -> None:
        """See Reporter."""
        self._status.stop()
        self._total, self._begun = total, time.monotonic()
        self._progress.update(self._task, total=total, count=f"0/{total:,}")
        self._progress.start()
        self._console.show_cursor(True)

    def update(self, done: int, begun: float, failed: int, now: str) -> None:
        """See Reporter."""
        left = remaining(time.monotonic() - self._begun, done + begun, self._total)
        wrong = f" ({failed:,} failed)" if failed else ""
        self._progress.update(
            self._task,
            completed=done + begun,
            description=now,
            count=f"{done:,}/{self._total:,}{wrong}",
            left="" if left is None else f"{duration(left)} left",
        )

    def line(self, text: str) -> None:
        """See Reporter."""
        self._status.stop()
        self._console.print(printable(text), soft_wrap=True)

    def stop(self) -> None:
        """See Reporter."""
        self._status.stop()
        self._progress.stop()
