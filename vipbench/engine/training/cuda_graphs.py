"""Steps of a training recorded once and repeated: CUDA graphs.

The processor takes longer to start the hundreds of small operations of a step than a GPU to do
them; a graph starts them all at once. A recording contains operations on tensors and no Python. It
is never trusted: its results are compared with those of the step itself at the beginning, from time
to time, and at the end. Where anything is wrong, the cells are trained again without.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from vipbench.api import Method
from vipbench.engine.training.step import Step
from vipbench.errors import UsageError

VARIABLE = "VIPBENCH_CUDA_GRAPHS"
# Steps before a recording; they are part of the training.
WARM = 3
# Of fewer steps a recording, which costs several itself, is taken to save nothing.
FEWEST = 30


class ReplayError(RuntimeError):
    """Repeating steps went wrong: the cells must be made and trained anew."""


class Recording(Protocol):
    """Operations that can be repeated."""

    def replay(self) -> None:
        """Do them again, on the same memory."""

    def close(self) -> None:
        """Let go of them."""


class Recorder(Protocol):
    """What can record."""

    def warm(self, work: Callable[[], None], strict: bool) -> None:
        """Do `work`, where it is going to be recorded. strict: raise where it waits for the
        device, which a recording cannot."""

    def record(self, work: Callable[[], None]) -> Recording:
        """Record `work` without doing it."""


class CudaGraphs:
    """A Recorder of one CUDA device, as PyTorch's notes on CUDA graphs ask: warmed up and recorded
    on a stream beside the usual one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def warm(self, work: Callable[[], None], strict: bool) -> None:
        """See Recorder."""
        usual = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(usual)
        with torch.cuda.stream(self._stream), _never_waiting() if strict else nullcontext():
            work()
        usual.wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> Recording:
        """See Recorder."""
        usual = torch.cuda.current_stream(self._device)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                work()
        finally:
            # After a failed recording torch leaves its stream the current one.
            torch.cuda.set_stream(usual)
        return _CudaGraph(graph, self._device)


class _CudaGraph:
    def __init__(self, graph: torch.cuda.CUDAGraph, device: torch.device) -> None:
        self._graph, self._device = graph, device

    def replay(self) -> None:
        self._graph.replay()

    def close(self) -> None:
        # The last replay may still be running in the memory that goes.
        torch.cuda.current_stream(self._device).synchronize()
        self._graph.reset()


@contextmanager
def _never_waiting() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        # It warns that it does not find every wait; recording finds the rest.
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def asked() -> bool:
    """Whether `VIPBENCH_CUDA_GRAPHS` asks for graphs. Raises UsageError."""
    given = os.environ.get(VARIABLE, "").strip() or "0"
    if given not in ("0", "1"):
        raise UsageError(f"{VARIABLE} is '{given}'; expected 1 (steps are recorded) or 0 (off)")
    return given == "1"


def replays(device: torch.device, note: Callable[[str], None]) -> Replays | None:
    """What a process repeats its steps with; None where `device` cannot, or VIPBENCH_CUDA_GRAPHS
    does not ask for it. Raises UsageError."""
    if not asked() or device.type != "cuda":
        return None
    return Replays(CudaGraphs(device), note)


class Replays:
    """Which trainings of a process repeat recorded steps. note: called with the reason where one
    does not.

    replayed: how many steps were repeated.
    """

    def __init__(self, recorder: Recorder, note: Callable[[str], None]) -> None:
        self.recorder = recorder
        self.replayed = 0
        self._note = note
        self._off = False
        self._refused: set[type[Method]] = set()

    def stretch(self, step: Step, method: Method, steps: int) -> Step | Stretch:
        """What does the next `steps` steps, one a call, between which no cell leaves."""
        usable = method.stackable and method.inputs == "features" and steps >= FEWEST
        if self._off or type(method) in self._refused or not usable:
            return step
        return Stretch(self, step, method, steps)

    def refuse(self, method: Method, reason: str, every: bool = False) -> None:
        """Repeat no more steps of this method, or of `every` one."""
        self._refused.add(type(method))
        self._off |= every
        whose = "all methods" if every else f"'{method.name}'"
        self._note(f"CUDA graphs are off for {whose}, which then take longer: {reason}")


class Stretch:
    """Steps of the same cells: the first few done, then recorded and repeated."""

    def __init__(self, replays: Replays, step: Step, method: Method, steps: int) -> None:
        self._replays, self._step, self._method, self._last = replays, step, method, steps - 1
        self._at = 0
        self._recording: Recording | None = None

    def __call__(self) -> None:
        """The next step. Raises ReplayError."""
        at, self._at = self._at, self._at + 1
        if at < WARM - 1:
            self._replays.recorder.warm(self._step, strict=False)
        else:
            try:
                self._repeat(at)
            except Exception as error:
                # A device on which one recording failed is trusted with no other.
                every = at == WARM and self._recording is None
                self.close()
                reason = f"at step {at + 1}, {_line(error)}"
                self._replays.refuse(self._method, reason, every)
                raise ReplayError(reason) from error

    def close(self) -> None:
        """Let go of the recording."""
        recording, self._recording = self._recording, None
        if recording is not None:
            recording.close()

    def _repeat(self, at: int) -> None:
        if at < WARM:
            self._replays.recorder.warm(self._step, strict=True)
            return
        if self._recording is None:
            self._recording = self._replays.recorder.record(self._step)
        # Later each time, and at the last, before anything of these steps is kept for good.
        behind = at - WARM
        if behind == 0 or at == self._last or (behind >= 16 and behind & (behind - 1) == 0):
            self._compare()
        else:
            self._recording.replay()
        self._replays.replayed += 1

    def _compare(self) -> None:
        """Do the step, and repeat it; what the step itself gives is kept."""
        assert self._recording is not None
        before = self._save()
        self._step()
        expected = self._save()
        self._restore(before)
        self._recording.replay()
        found = self._save()
        self._restore(expected)
        if not agree(found, expected, before):
            raise ValueError("a replayed step gave numbers that differ from the step's own")

    def _save(self) -> list[Tensor]:
        return [value.clone() for value in self._step.written()]

    def _restore(self, values: Sequence[Tensor]) -> None:
        for place, value in zip(self._step.written(), values, strict=True):
            place.copy_(value)


def agree(found: Sequence[Tensor], expected: Sequence[Tensor], before: Sequence[Tensor]) -> bool:
    """Whether two ways to do a step from `before` differ by rounding alone: losses by 1e-5, the
    gradient norm by a thousandth, images had right by one, what is written by a hundredth of its
    change, for each cell.

    All: statistics (3,cells), then what else the step writes, (cells,*) each.
    """
    statistics, wanted = found[0], expected[0]
    loss, norm, _ = wanted.abs()
    limits = torch.stack([1e-5 * loss.clamp(min=1.0), 1e-3 * norm + 1e-6, torch.ones_like(norm)])
    alike = (statistics == wanted) | (statistics.isnan() & wanted.isnan())
    right = (alike | ((statistics - wanted).abs() <= limits)).all()
    for mine, other, start in zip(found[1:], expected[1:], before[1:], strict=True):
        a, b, old = (value.unsqueeze(-1).flatten(1).float() for value in (mine, other, start))
        limit = 1e-2 * (b - old).norm(dim=1) + 1e-6 * b.norm(dim=1)
        finite = b.isfinite().all(1)
        close = ((a - b).norm(dim=1) <= limit) | ~finite
        right &= (close & (a.isfinite().all(1) == finite)).all()
    return bool(right)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
