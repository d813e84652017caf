"""How far a run is: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from html import escape
from typing import Any, Protocol, TextIO

from vipbench import trust
from vipbench.errors import printable
from vipbench.text import duration, plural

# A log gets its second line after this time, in seconds, and then ever fewer.
SECOND_LINE, RAREST_LINE = 10.0, 300.0
# A run that takes longer is announced once it has run for so long, in seconds.
LONG_RUN, ANNOUNCED_AFTER = 3600.0, 15.0


class Reporter(Protocol):
    """What shows the progress, counted in cells."""

    def start(self, total: int) -> None:
        """`total` cells are to be run from now on."""

    def update(self, done: int, begun: float, failed: int, now: str) -> None:
        """`done` cells have ended, of which `failed` failed; what is done of the cells in work
        comes to `begun` whole ones; `now` is their row."""

    def encoding(self, done: int, total: int, cells: int) -> None:
        """`done` of `total` images are encoded for `cells` cells that then begin."""

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


class Pace:
    """Time left in a run: the encoding of images is timed apart from the cells."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.begun = clock()
        self._encoding: tuple[float, int, int] | None = None
        self._spent = 0.0
        self._announced = False

    def elapsed(self) -> float:
        """Seconds since the run began."""
        return self.clock() - self.begun

    def encoding(self, done: int, total: int) -> float | None:
        """Seconds of encoding left; None before two reports."""
        now = self.clock()
        if self._encoding is None or self._encoding[2] != total or self._encoding[1] > done:
            self._encoding = now, done, total
            return None
        since, first, _ = self._encoding
        return (now - since) * (total - done) / max(done - first, 1)

    def cells(self, completed: float, total: int) -> float | None:
        """Seconds left for the cells at the pace so far; None where too little is done."""
        if self._encoding is not None:
            self._spent += self.clock() - self._encoding[0]
            self._encoding = None
        return remaining(self.elapsed() - self._spent, completed, total)

    def announcement(self, completed: float, total: int, what: str) -> str | None:
        """Once, that the run will take long, and with what; judged by the share `completed` of
        `total` pieces of the work at hand, however small."""
        spent = self.clock() - self._encoding[0] if self._encoding else self.elapsed() - self._spent
        if self._announced or spent < ANNOUNCED_AFTER or completed <= 0:
            return None
        left = spent * (total - completed) / completed
        if left < LONG_RUN:
            return None
        self._announced = True
        return (
            f"note: at the present pace, {what} takes about {duration(left)} more; "
            "`--dry-run --estimate` lists the time of each row"
        )


def encoding_text(done: int, total: int, left: float | None, cells: int) -> str:
    """What is shown while images are encoded."""
    parts = [f"encoding {done:,}/{total:,} images"]
    parts += [f"{duration(left)} left"] if left is not None else []
    return ", ".join([*parts, f"then {plural(cells, 'cell')}"])


class Log:
    """Lines without control characters, the first at once, then ever fewer."""

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._pace = Pace(clock)
        self._last = -math.inf
        self._total = 0

    def start(self, total: int) -> None:
        """See Reporter."""
        self._total = total
        self._pace = Pace(self._pace.clock)

    def encoding(self, done: int, total: int, cells: int) -> None:
        """See Reporter."""
        left = self._pace.encoding(done, total)
        if left is None:
            return
        if self._due():
            self._stamped(encoding_text(done, total, left, cells))
        self._announce(done, total, "encoding images")

    def update(self, done: int, begun: float, failed: int, now: str) -> None:
        """See Reporter."""
        left = self._pace.cells(done + begun, self._total)
        self._announce(done + begun, self._total, f"the run ({now})")
        if not self._due():
            return
        elapsed = self._pace.elapsed()
        parts = [f"{done:,} of {self._total:,} cells done"]
        parts += [f"{failed:,} failed"] if failed else []
        parts += [f"{duration(elapsed)} gone"]
        parts += [f"about {duration(left)} left"] if left is not None else []
        parts += [f"now {now}"] if now else []
        self._stamped(", ".join(parts))

    def _announce(self, completed: float, total: int, what: str) -> None:
        if announcement := self._pace.announcement(completed, total, what):
            self.line(announcement)

    def _due(self) -> bool:
        elapsed = self._pace.elapsed()
        if elapsed - self._last < min(max(SECOND_LINE, elapsed / 4), RAREST_LINE):
            return False
        self._last = elapsed
        return True

    def _stamped(self, text: str) -> None:
        self.line(f"[{time.strftime('%H:%M:%S')}] {text}")

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

    def encoding(self, done: int, total: int, cells: int) -> None:
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

    def encoding(self, done: int, total: int, cells: int) -> None:
        """See Reporter."""
        text = encoding_text(done, total, self._pace.encoding(done, total), cells)
        self._show(f"<progress value='{done}' max='{total}'></progress> {text}")
        self._announce(done, total, "encoding images")

    def update(self, done: int, begun: float, failed: int, now: str) -> None:
        """See Reporter."""
        left = self._pace.cells(done + begun, self._total)
        self._announce(done + begun, self._total, f"the run ({now})")
        moment = self._pace.clock()
        if moment - self._drawn < 0.2 and done < self._total:
            return
        self._drawn = moment
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
        self._pace = Pace(time.monotonic)

    def start(self, total: int) -> None:
        """See Reporter."""
        self._status.stop()
        self._total, self._pace = total, Pace(time.monotonic)
        self._progress.update(self._task, total=total, count=f"0/{total:,}")
        self._progress.start()
        self._console.show_cursor(True)

    def encoding(self, done: int, total: int, cells: int) -> None:
        """See Reporter."""
        text = encoding_text(done, total, self._pace.encoding(done, total), cells)
        self._progress.update(self._task, description=text, left="")
        self._announce(done, total, "encoding images")

    def update(self, done: int, begun: float, failed: int, now: str) -> None:
        """See Reporter."""
        left = self._pace.cells(done + begun, self._total)
        self._announce(done + begun, self._total, f"the run ({now})")
        wrong = f" ({failed:,} failed)" if failed else ""
        self._progress.update(
            self._task,
            completed=done + begun,
            description=now,
            count=f"{done:,}/{self._total:,}{wrong}",
            left="" if left is None else f"{duration(left)} left",
        )

    def _announce(self, completed: float, total: int, what: str) -> None:
        if announcement := self._pace.announcement(completed, total, what):
            self.line(announcement)

    def line(self, text: str) -> None:
        """See Reporter."""
        self._status.stop()
        self._console.print(printable(text), soft_wrap=True)

    def stop(self) -> None:
        """See Reporter."""
        self._status.stop()
        self._progress.stop()
