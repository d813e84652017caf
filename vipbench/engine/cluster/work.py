"""Runs one part of a run on this machine; jobs run nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import vipbench
from vipbench import trust
from vipbench.engine.cluster import slurm
from vipbench.engine.cluster.folder import TIME_LIMIT, ChangedError, EncodePart, Part, Parts
from vipbench.engine.cluster.results import PartResults
from vipbench.engine.evaluation.stack_size import MOST_STACKED
from vipbench.engine.evaluation.stack_size import VARIABLE as STACK_VARIABLE
from vipbench.engine.kept import LOCAL_VARIABLE
from vipbench.engine.workers import driver
from vipbench.engine.workers.driver import Observer, Outcome, Plan, Signal
from vipbench.errors import UsageError
from vipbench.fetching import offline
from vipbench.runspec.executor import executor_of

# Exit statuses: of a part that is not to be started again as it is, and of one that is.
REFUSED, AGAIN = 3, 75
# How often a job looks whether its run was cancelled, in seconds.
LOOK = 5.0
# Before the end of its time a job has so many seconds to leave in order, or half of the time
# between the signal and the end, if that is less.
LEAVING = 30.0
# Slurm may send the signal so many seconds before it is due.
EARLY = 60.0
GPU_VARIABLE = "CUDA_VISIBLE_DEVICES"


class _Leave(Signal):
    """When a part is to stop: a signal came, its time is nearly over, or the run was cancelled."""

    def __init__(self, parts: Parts, lead: float, end: float | None) -> None:
        super().__init__()
        self.why = ""
        self._parts, self._lead = parts, lead
        self._leaving = min(LEAVING, lead / 2)
        self._looked = time.monotonic()
        self._longest = 0.0
        # Until then, by the clock of `time.monotonic`, a batch has to have ended.
        self._until = float("inf") if end is None else self._last(end - time.time())
        self._known, self._signalled = end is not None, False

    def _last(self, left: float) -> float:
        return time.monotonic() + max(0.0, left - self._leaving)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The batch system says that the time is nearly over; SIGINT: a person wants the end."""
        if number == signal.SIGINT:
            self.why, self.number = "interrupted", number
            return
        self._signalled = True
        if not self._known:
            # What is trained now may still come to its end.
            self._until = min(self._until, self._last(self._lead))
        elif self._until - time.monotonic() > self._lead + EARLY:
            # Not the end of the job's time, but a preemption or a person: nobody says when.
            self._until = time.monotonic()

    def kept(self, seconds: float) -> None:
        """A batch came after so many seconds: the moment to leave, where the next one would not
        end in time."""
        self._longest = max(self._longest, seconds)
        if time.monotonic() + self._longest > self._until:
            self._leave("time")

    def _leave(self, why: str) -> None:
        if not self.why:
            self.why, self.number = why, signal.SIGUSR2

    def __call__(self) -> bool:
        now = time.monotonic()
        # Without a signal, the first batch is tried however short the time is.
        if self._signalled and now >= self._until:
            self._leave("time")
        if now - self._looked > LOOK:
            self._looked = now
            if self._parts.cancelled:
                self._leave("cancelled")
        return self.number is not None


@contextmanager
def _signals(leave: _Leave) -> Iterator[None]:
    """A batch system warns with SIGTERM before it preempts or cancels: results are on the disk
    already, and a job that ends by itself then is not started again. SIGUSR2 comes before the end
    of its time."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers: dict[int, Any] = {
        signal.SIGTERM: signal.SIG_IGN,
        signal.SIGHUP: signal.SIG_IGN,
        signal.SIGUSR1: signal.SIG_IGN,
        signal.SIGUSR2: leave.handle,
        signal.SIGINT: leave.handle,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Checked(Observer):
    """Hands on what a run reports; raises UsageError where the part would compute without the GPU
    that it asked for."""

    def __init__(
        self, shown: Observer, gpu: bool, device: str, broken: Callable[[list[str]], None]
    ) -> None:
        self._shown, self._gpu, self._device, self._broken = shown, gpu, device, broken
        self.cell_done = shown.cell_done  # type: ignore[method-assign]
        self.progress = shown.progress  # type: ignore[method-assign]
        self.note = shown.note  # type: ignore[method-assign]

    def planned(self, plan: Plan) -> None:
        """See Observer."""
        found = plan.info.get("device", "")
        if self._gpu and self._device == "auto" and found == "cpu":
            raise UsageError(
                f"this part requested a GPU ({GPU_VARIABLE}="
                f"{os.environ.get(GPU_VARIABLE, '')}), but PyTorch finds no usable one; nothing "
                "was run. Install a PyTorch that fits the node's driver, or use --device cpu"
            )
        if plan.broken:
            self._broken(plan.broken)
        self._shown.planned(plan)


def code_digest() -> str:
    """A digest of the package's files."""
    root = Path(vipbench.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def seal(run: dict[str, Any]) -> str:
    """What shows that this user submitted a run: a stranger's folder may hold any run.json."""
    return trust.seal([run[name] for name in ("id", "grants", "environment", "cwd", "plugins_dir")])


def work(
    out: Path,
    number: int,
    shown: Callable[[Any], Observer],
    say: Callable[[str], None],
    encode: bool = False,
) -> int:
    """Do part `number` of the run that was cut in `out`, or what is left of it; returns the exit
    status. shown: makes the observer of the part's RunSpec. say: receives lines. encode: whether it
    is an encode part. Raises UsageError where there is no such part."""
    parts = Parts(out)
    run = parts.run()
    part = parts.encode(number) if encode else parts.part(number)
    name = part.name if isinstance(part, EncodePart) else number
    what = f"encode part {number}" if encode else f"part {number}"
    legs = parts.legs(name)
    leg = len(legs.begun) + 1
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID")
    gpu = os.environ.get(GPU_VARIABLE)
    visible = "" if gpu is None else f", {GPU_VARIABLE}={gpu}"
    say(f"{what} of {parts.out}, leg {leg} on {node}{visible}")
    # What is encoded has no stacks.
    stack = MOST_STACKED if encode else legs.stack(MOST_STACKED)
    until = slurm.end_of_this_job()
    about = {"leg": leg, "node": node, "job": job, "gpu": gpu, "stack": stack, "until": until}
    parts.note(name, "begin", **about)

    def end(status: str, message: str, code: int) -> int:
        parts.note(name, "end", status=status, message=message)
        if message:
            say(f"{what}: {message}")
        return code

    if parts.cancelled:
        return end("cancelled", "the run is cancelled; the same `vipbench run` resumes it", REFUSED)
    if not stack:
        fruitless = "no job of this part ran long enough to finish a cell"
        return end("given up", f"given up: {fruitless}; raise time", REFUSED)
    try:
        wrong = _refusal(run, gpu)
        if wrong:
            return end("refused", wrong, REFUSED)
        leave = _Leave(parts, run["lead"], until)
        return _run(parts, part, run, stack, leave, shown, end)
    except ChangedError as error:
        return end("refused", str(error), REFUSED)
    except UsageError as error:
        return end("refused", str(error), 2)
    except trust.UntrustedCodeError as error:
        return end("refused", str(error), REFUSED)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return end("failed", f"{where}{error.strerror or error}; finished cells are kept", 1)


def _refusal(run: dict[str, Any], gpu: str | None) -> str:
    """Why nothing may be run here, or ""."""
    if run["package"] != code_digest():
        return (
            f"this vipbench ({Path(vipbench.__file__).parent}) is not the one that submitted the "
            "run: its files differ; submit again, or use the same version"
        )
    if executor_of(run["executor"]).all_gpus and (
        gpu is None or gpu.strip() in ("", "-1", "NoDevFiles")
    ):
        return f"a GPU was requested, but none is visible: {GPU_VARIABLE} is {gpu!r}"
    return ""


def _run(
    parts: Parts,
    part: Part | EncodePart,
    run: dict[str, Any],
    stack: int,
    leave: _Leave,
    shown: Callable[[Any], Observer],
    end: Callable[[str, str, int], int],
) -> int:
    if not hmac.compare_digest(str(run.get("seal")), seal(run)):
        return end(
            "refused",
            "you did not submit this run, or the job uses another configuration folder "
            f"({trust.FOLDER_VARIABLE}); `vipbench run` submits it again and asks for consent",
            REFUSED,
        )
    executor = executor_of(run["executor"])
    for name, value in run["environment"].items():
        os.environ.setdefault(name, value)
    if executor.cache_local:
        # The same for all jobs of the run on a node, as far as they share $TMPDIR.
        folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"vipbench-{os.getuid()}-{run['id']}"
        os.environ.setdefault(LOCAL_VARIABLE, str(folder))
    offline.obey()
    if stack < MOST_STACKED:
        os.environ[STACK_VARIABLE] = str(stack)
    os.chdir(run["cwd"])
    trust.obey(run["grants"])
    name = part.name if isinstance(part, EncodePart) else part.number
    spec = parts.spec(name)
    if run["plugins_dir"] is not None:
        spec = spec.model_copy(update={"plugins_dir": Path(run["plugins_dir"])})

    def note_broken(sentences: list[str]) -> None:
        parts.note(name, "broken", sentences=sentences)

    observer = _Checked(shown(spec), executor.all_gpus > 0, spec.device, note_broken)
    with _signals(leave):
        if isinstance(part, EncodePart):
            outcome = driver.encode(spec, observer, leave)
        else:
            results = PartResults(parts, part, observer.note, leave.kept)
            outcome = driver.run(spec, observer, results=results, stopped=leave)
            if results.complete:  # the signal came during the last batch
                outcome = dataclasses.replace(outcome, signal=None)
        return _ended(outcome, leave, end)


def _ended(outcome: Outcome, leave: _Leave, end: Callable[[str, str, int], int]) -> int:
    if not outcome.interrupted:
        failed = outcome.failed or outcome.broken
        return end("done", "", 1 if failed else 0)
    if leave.why == "cancelled":
        return end("cancelled", "cancelled; the same `vipbench run` resumes it", REFUSED)
    if leave.why == "interrupted":
        return end("interrupted", "interrupted; finished cells are kept", 130)
    status = end(TIME_LIMIT, "time limit reached; the next job of this part continues", AGAIN)
    if os.environ.get("SLURM_JOB_ID"):
        slurm.requeue_this_job()
    return status
