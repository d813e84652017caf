"""A worker process as its driver sees it.

Its events come through a pipe that is read when something has arrived (`receive`), so that one
thread can watch any number of workers (see `pool`).
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

import vipbench
from vipbench import trust
from vipbench.engine import memory
from vipbench.engine.workers.messages import (
    Command,
    Event,
    Grants,
    Importing,
    MessageError,
    Ready,
    Refused,
    Request,
    Untrusted,
    read_event,
    to_line,
)
from vipbench.errors import UsageError

Answer = TypeVar("Answer", bound=Event)

START = "from vipbench.engine.workers.main import main; main()"
# Libraries read them once, and multiply fp32 numbers less exactly: see `engine.precision`.
PRODUCT_VARIABLES = (
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
)
# What a plugin may print before its worker's output is cut.
LOG_LIMIT = 8 * 1024 * 1024
# Seconds between a worker's hanging up and its end.
GRACE = 5.0
# Seconds between two looks at a signal that may have come.
BEAT = 0.2
# Seconds that a worker may plan, or import a plugin, without a sign of life: an event, or so many
# bytes that it has read, written but not printed, or taken of memory, more than ever before.
SILENCE = 120.0
WORK = 4 << 20
# What `faulthandler` writes.
STACK = re.compile(r"\(most recent call first\):\n((?:  File .*\n)+)")
MEMORY_VARIABLE = "VIPBENCH_WORKER_GB"
# The share of the machine's or job's memory that all workers together may take.
MEMORY_SHARE = 0.9
# What is read of one worker at a time: the others wait meanwhile.
CHUNK, CHUNKS = 1 << 16, 64


def memory_of(pid: int) -> int:
    """Bytes of memory that a process takes; 0 where unknown."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def transferred_by(pid: int) -> int:
    """Bytes that a process and what it started have read and written; 0 where unknown."""
    try:
        lines = Path(f"/proc/{pid}/io").read_text().split("\n")
        counts = {name: int(count) for name, _, count in (x.partition(": ") for x in lines if x)}
        found = sum(counts[name] for name in ("rchar", "wchar", "read_bytes"))
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            found += sum(transferred_by(int(child)) for child in children.read_text().split())
    except (OSError, ValueError, KeyError):
        return 0
    return found


def most_memory() -> float:
    """Bytes that one worker may take."""
    own = os.environ.get(MEMORY_VARIABLE)
    if own:
        return float(own) * 1e9
    return MEMORY_SHARE * memory.whole()


def over_memory(taken: int) -> str:
    """Why a worker that takes so many bytes is ended."""
    return f"it used {taken / 1e9:.1f} GB of memory; {MEMORY_VARIABLE} sets the limit per worker"


class WorkerDiedError(RuntimeError):
    """The worker ended by itself; the message says how, and the last that it printed."""


class PlannedOtherwiseError(UsageError):
    """A worker with some of the plugins does not plan the cells that all together gave."""


class Stopped(BaseException):
    """The run is to stop. Not an Exception: nothing on the way up may swallow it."""


class Worker:
    """One worker process; commands go in, events come out.

    plugin_set: the sources of the users' plugins whose code it has loaded, or is to load. ready:
    whether it waits for a command. last: when it gave its last sign of life, by `time.monotonic`.
    planned: whether it knows the run's cells; its owner's to set. importing: the source of the
    plugin that it is importing, or "". most: seconds that it may work without an event when it
    plans, if more than SILENCE. over: why this process ended it, or "". encoded: pairs of backbone
    and dataset whose images it was given to encode for the whole run; its owner's to set.
    """

    def __init__(self, plugin_set: frozenset[str] = frozenset(), most: float = 3600.0) -> None:
        self.plugin_set = plugin_set
        self._most = most
        self.over = ""
        self._work, self._worked, self._peak = 0, 0.0, 0
        self.ready = False
        self.planned = False
        self.last = time.monotonic()
        self._buffer = bytearray()
        self._ended = False
        self.importing = ""
        self.encoded: set[tuple[str, str]] = set()
        self._command: Command | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        root = str(Path(vipbench.__file__).parents[1])
        path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
        # -P: no module of the working directory may stand in for an installed one.
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C goes to the driver alone, which decides.
            # Threads that wait by spinning starve each other on a busy machine.
            env={
                "OMP_WAIT_POLICY": "PASSIVE",
                **{k: v for k, v in os.environ.items() if k not in PRODUCT_VARIABLES},
                "PYTHONPATH": path,
            },
        )
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._in, self._out = process, process.stdin, process.stdout
        os.set_blocking(self._out.fileno(), False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """What `select` waits for."""
        return self._out.fileno()

    def send(self, command: Command) -> None:
        """Give a command. Raises WorkerDiedError."""
        self.ready = False
        self.last = self._worked = time.monotonic()
        self._command = command
        try:
            request = Request(command=command, code=Grants(**trust.grants()))
            self._in.write(to_line(request))
            self._in.flush()
        except OSError:
            raise WorkerDiedError(self._describe_end()) from None

    def receive(self) -> list[Event]:
        """The events that have arrived, maybe none. Raises WorkerDiedError when the worker has
        ended and all that it sent was given out."""
        if self._ended:
            raise WorkerDiedError(self._describe_end())
        gone = self.gone()
        for _ in range(CHUNKS):
            try:
                chunk = os.read(self._out.fileno(), CHUNK)
            except BlockingIOError:
                # What it started may hold its pipe open.
                self._ended = gone
                break
            if not chunk:
                self._ended = True
                break
            self._buffer += chunk
        events: list[Event] = []
        *lines, rest = bytes(self._buffer).split(b"\n") if b"\n" in self._buffer else (b"",)
        if lines:
            self._buffer = bytearray(rest)
        for line in lines:
            self.last = time.monotonic()
            try:
                event = read_event(line)
            except MessageError:
                # Something else wrote to its pipe: nothing that follows can be trusted.
                self._kill_group()
                self._ended = True
                break
            self.ready = isinstance(event, Ready)
            if isinstance(event, Importing):
                self.importing = event.plugin
            elif not self.ready:
                events.append(event)
        if self._ended and not events:
            raise WorkerDiedError(self._describe_end())
        return events

    def ask(
        self,
        command: Command,
        expected: type[Answer],
        stop: Callable[[], bool] = lambda: False,
        seen: Callable[[Event], None] = lambda event: None,
    ) -> Answer:
        """Give a command, wait until it is done, and return its last event, of type `expected`.

        stop: asked several times a second; True raises Stopped. seen: called with each event. Where
        the worker meets code that it may not run, this process is asked (see `trust.require`), and
        the command is given again.
        Raises WorkerDiedError, UntrustedCodeError, and UsageError where the worker answers with
        one.
        """
        self.send(command)
        return self.answer(expected, stop, seen)

    def answer(
        self,
        expected: type[Answer],
        stop: Callable[[], bool] = lambda: False,
        seen: Callable[[Event], None] = lambda event: None,
    ) -> Answer:
        """`ask` for a command that was given before."""
        answer: Event | None = None
        while not self.ready:
            if stop():
                raise Stopped
            if not select.select([self], [], [], BEAT)[0]:
                self.bound_log()
                self.bound()
            for event in self.receive():
                if isinstance(event, Refused):
                    raise UsageError(event.message)
                seen(event)
                answer = event
        if isinstance(answer, Untrusted):
            trust.require(answer.what, answer.asked, answer.files)
            assert self._command is not None
            return self.ask(self._command, expected, stop, seen)
        if not isinstance(answer, expected):
            self.kill()
            raise WorkerDiedError(f"the worker process answered with {type(answer).__name__}")
        return answer

    def bound(self) -> None:
        """End it where it plans without a sign of life, or takes too much memory for it."""
        now, taken = time.monotonic(), self.memory()
        self._peak = max(self._peak, taken)
        transferred = transferred_by(self._process.pid)
        work = transferred + self._peak - self._bytes_printed()
        if work - self._work > WORK:
            self._work, self._worked = work, now
        since = max(self.last, self._worked)
        if taken > most_memory():
            self._end(over_memory(taken))
        elif now - since > SILENCE if transferred else now - self.last > self._most:
            self._end(f"it gave no sign of life for {now - since:.0f} s")
        elif now - self.last > max(SILENCE, self._most):
            self._end(f"it did not finish within {now - self.last:.0f} s")

    def _bytes_printed(self) -> int:
        """Bytes that it has printed: it writes where this process's descriptor stands, too."""
        return os.lseek(self._log.fileno(), 0, os.SEEK_CUR)

    def _end(self, why: str) -> None:
        before = self._bytes_printed()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(self._process.pid, signal.SIGUSR1)  # it prints where it is
        until, frames = time.monotonic() + GRACE, None
        while frames is None and time.monotonic() < until and not self.gone():
            time.sleep(BEAT)
            # Not by `seek`: its output goes where this descriptor stands.
            output = os.pread(self._log.fileno(), LOG_LIMIT, before)
            frames = STACK.search(output.decode("utf-8", "replace"))
        self._kill_group()
        at = "; ".join(frames[1].strip().splitlines()[:4]) if frames else ""
        self.over = why + (f"; it was at {' '.join(at.split())}" if at else "")

    def memory(self) -> int:
        """Bytes of memory that it takes; 0 where unknown."""
        return memory_of(self._process.pid)

    def gone(self) -> bool:
        """Whether the process has ended, whatever it started."""
        if self._process.returncode is not None:
            return True
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, flags) is not None

    def kill(self) -> None:
        """End the worker and whatever it started, at once."""
        if self._process.returncode is None:
            self._kill_group()
        self._process.wait()

    def _kill_group(self) -> None:
        # Only while the worker is not waited for: until then its number is nobody else's.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _exit_status(self) -> int:
        """Its exit status; what it started goes with it, and so does one that only hung up."""
        if self._process.returncode is None:
            until = time.monotonic() + GRACE
            while time.monotonic() < until and not self.gone():
                time.sleep(0.02)
            self._kill_group()
        return self._process.wait()

    def close(self) -> None:
        """End the worker and free what it held. Closing twice is no error."""
        self.kill()
        for stream in (self._in, self._out):
            with contextlib.suppress(OSError):
                stream.close()
        self._log.close()

    def bound_log(self) -> None:
        """Forget what it printed where that is too much."""
        if os.fstat(self._log.fileno()).st_size > LOG_LIMIT:
            self._log.truncate(0)

    def _describe_end(self) -> str:
        code = self._exit_status()
        how = f"exit status {code}"
        if code < 0:
            how = f"signal {signal.Signals(-code).name}"
        if self.importing:
            how += f" while it imported the plugin '{self.importing}'"
        if self.over:
            how += f", as {self.over}"
        size = os.fstat(self._log.fileno()).st_size
        self._log.seek(max(0, size - 4000))
        output = self._log.read().decode("utf-8", "replace").strip("\0\n ")
        return f"the worker process ended with {how}" + (
            f"; it output: {output}" if output and not self.over else ""
        )
