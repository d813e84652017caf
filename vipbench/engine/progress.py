"""How far a run is: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from html import escape
from typing import Any, Protocol, TextIO

from vipbench import trust
from vipbench.errors import printable
from vipbench.text import duration

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


def reporter(stream: TextIO) -> Reporter:
    """A bar where `stream` is a terminal that can show one, else log lines."""
    if stream.isatty() and os.environ.get("TERM") != "dumb":
        return Bar(stream)
    return Log(stream)


def reporter_here() -> Reporter:
    """For a run that Python started: a bar below the notebook's cell, or on standard error."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is not None and getattr(shell, "kernel", None) is not None:
        return Notebook()
    return reporter(sys.stderr)


def remaining(elapsed: float, completed: float, total: int) -> float | None:
    """Seconds to go at the pace so far; None where too little tells yet."""
    if completed < max(3, total / 20) or elapsed < 1:
        return None
    return elapsed * (total - completed) / completed


class Log:
    """Lines without control characters, the first after some seconds, then ever fewer."""

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
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
        print(printable(text), file=self._stream, flush=True)

    def stop(self) -> None:
        """See Reporter."""


class Quiet:
    """Shows nothing."""

    def start(self, total: int) -> None:
        """See Reporter."""

    def update(self, done: int, begun: float, failed: int, now: str) -> None:
        """See Reporter."""

    def line(self, text: str) -> None:
        """See Reporter."""

    def stop(self) -> None:
        """See Reporter."""


class Notebook(Log):
    """A bar below the cell of a notebook, which ends with it; lines are printed above it."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self._bar: Any = None
        self._drawn = 0.0

    def start(self, total: int) -> None:
        """See Reporter."""
        super().start(total)
        self._show(f"<progress max='{total}'></progress> 0/{total:,}")

    def update(self, done: int, begun: float, failed: int, now: str) -> None:
        """See Reporter."""
        moment = self._clock()
        if moment - self._drawn < 0.2 and done < self._total:
            return
        self._drawn = moment
        left = remaining(moment - self._begun, done + begun, self._total)
        parts = [f"{done:,}/{self._total:,}"]
        parts += [f"{failed:,} failed"] if failed else []
        parts += [f"{duration(left)} left"] if left is not None else []
        parts += [escape(now)] if now else []
        bar = f"<progress value='{done + begun:.3f}' max='{self._total}'></progress>"
        self._show(f"{bar} {', '.join(parts)}")

    def stop(self) -> None:
        """See Reporter."""
        if self._bar is not None:
            self._show("")
            self._bar = None

    def _show(self, text: str) -> None:
        from IPython.display import HTML, display

        if self._bar is None:
            self._bar = display(HTML(text), display_id=True)
        else:
            self._bar.update(HTML(text))


class Bar:
    """A rich bar with the time to go; lines scroll by above it."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._console = Console(file=stream, markup=False, highlight=False, emoji=False)
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
