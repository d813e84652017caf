"""The worker process as its driver sees it. No torch here."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import vipbench

START = "from vipbench.engine.lifeline import main; main()"
# What a plugin may print before its worker's output is cut.
LOG_LIMIT = 8 * 1024 * 1024
# Seconds between a worker's hanging up and its end.
GRACE = 5.0


MEMORY_VARIABLE = "VIPBENCH_WORKER_GB"


def memory_limit() -> float:
    """The most bytes of memory that a worker may take: `VIPBENCH_WORKER_GB`, or 90 % of what the
    machine has."""
    named = os.environ.get(MEMORY_VARIABLE)
    if named:
        return float(named) * 1e9
    return 0.9 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class WorkerDiedError(RuntimeError):
    """The worker ended by itself; the message says how, and the last that it printed."""


class WorkerTimeoutError(RuntimeError):
    """The worker showed no progress for longer than a cell may take; it was killed."""


class Stopped(BaseException):
    """The run was told to stop. Not an Exception: nothing on the way up may swallow it."""


class Worker:
    """One worker process; commands go in, events come out.

    stop: asked several times a second while waiting; True raises Stopped.
    """

    def __init__(self, stop: Callable[[], bool] = lambda: False) -> None:
        self._stop = stop
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        root = str(Path(vipbench.__file__).parents[1])
        path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
        # -P: no module of the working directory may stand in for an installed one.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C goes to the driver alone, which decides.
            # Threads that wait by spinning starve each other on a busy machine.
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": path},
            text=True,
            encoding="utf-8",
        )
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                self._events.put(json.loads(line))
            except ValueError:
                # The worker was killed in the middle of a line, or something else wrote to its
                # pipe: nothing that follows can be trusted.
                self._kill_group()
                break
        self._events.put(None)

    def ask(
        self, do: str, limit: float | None = None, **arguments: Any
    ) -> Iterator[dict[str, Any]]:
        """Send a command and yield its events until the worker is ready again.

        limit: seconds without any event. Raises WorkerDiedError, WorkerTimeoutError, Stopped.
        """
        self.send(do, **arguments)
        return self.answers(limit)

    def send(self, do: str, **arguments: Any) -> None:
        """Send a command whose `answers` are taken later. Raises WorkerDiedError."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, "with": arguments}) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise WorkerDiedError(self._obituary()) from None

    def answers(
        self, limit: float | None = None, late: Callable[[], None] = lambda: None
    ) -> Iterator[dict[str, Any]]:
        """The events of the command that was sent; see `ask`. late: called again and again while
        the limit is half a minute, or half of it, away."""
        last = time.monotonic()
        while True:
            if self._stop():
                raise Stopped
            try:
                event = self._events.get(timeout=0.2)
            except queue.Empty:
                self._bound_log()
                self._bound_memory()
                idle = time.monotonic() - last
                if limit is not None and idle > max(limit / 2, limit - 30):
                    late()
                if limit is not None and idle > limit:
                    self.kill()
                    raise WorkerTimeoutError(f"no progress in {limit:g} s") from None
                continue
            last = time.monotonic()
            if event is None:
                raise WorkerDiedError(self._obituary())
            if event["event"] == "ready":
                return
            yield event

    def pending(self) -> list[dict[str, Any]]:
        """Events that have arrived and that nobody has taken."""
        events = []
        while not self._events.empty():
            event = self._events.get()
            if event is not None:
                events.append(event)
        return events

    def kill(self) -> None:
        """End the worker and whatever it started, at once."""
        if self._process.returncode is None:
            self._kill_group()
        self._process.wait()

    def _kill_group(self) -> None:
        # Only while the worker is not waited for: until then its number is nobody else's.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _bound_memory(self) -> None:
        # Before the system ends a process of its own choice, which might be the driver.
        try:
            pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        except (OSError, ValueError, IndexError):
            return
        used, most = pages * os.sysconf("SC_PAGE_SIZE"), memory_limit()
        if used > most:
            self.kill()
            raise WorkerDiedError(
                f"the worker process took {used / 1e9:.1f} GB of memory and was ended; it may take "
                f"{most / 1e9:.1f} GB ({MEMORY_VARIABLE} changes that)"
            )

    def _last_words(self) -> int:
        """Its exit status; what it started goes with it, and so does one that only hung up."""
        if self._process.returncode is None:
            until = time.monotonic() + GRACE
            flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
            while time.monotonic() < until and not os.waitid(os.P_PID, self._process.pid, flags):
                time.sleep(0.02)
            self._kill_group()
        return self._process.wait()

    def close(self) -> None:
        """End the worker and free what it held."""
        self.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._log.close()

    def _bound_log(self) -> None:
        if os.fstat(self._log.fileno()).st_size > LOG_LIMIT:
            self._log.truncate(0)

    def _obituary(self) -> str:
        code = self._last_words()
        how = f"exit status {code}"
        if code < 0:
            how = f"signal {signal.Signals(-code).name}"
        size = os.fstat(self._log.fileno()).st_size
        self._log.seek(max(0, size - 4000))
        said = self._log.read().decode("utf-8", "replace").strip("\0\n ")
        return f"the worker process ended with {how}" + (f"; it said: {said}" if said else "")
