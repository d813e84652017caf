"""The process that runs the parts: imports, time limits, and one line for each result."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.gpu.__main__ import LIMITS, append

STARTED = time.monotonic()
AGAIN = 5.0
os.environ["VIPBENCH_CACHE"] = tempfile.mkdtemp(prefix="vipbench-gpu-")

import torch

from benchmarks.speed.grid import Grid, make_backbone
from vipbench.backbones.towers.clip import ClipBackbone

Line = dict[str, Any]


class NoCudaError(Exception):
    """The part, or the rest of it, needs CUDA."""


class OutOfTimeError(BaseException):
    """The limit of a part; no Exception, so that no part takes it for an error of its own."""


@dataclass
class Bench:
    """What parts share. device: where to compute. golden: the folder of recorded figures.
    startup: seconds of imports. lines: what earlier parts found, also in another process."""

    device: torch.device
    quick: bool
    out: Path
    golden: Path
    startup: float
    lines: list[Line] = field(default_factory=list)
    made: float = 0.0  # seconds to make the backbone

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU of CUDA."""
        return self.device.type == "cuda"

    @property
    def arch(self) -> str:
        """The architecture that is measured."""
        return "toy" if self.quick else "ViT-B-16"

    @property
    def epochs(self) -> int:
        """Epochs of the grid."""
        return 2 if self.quick else 50

    @cached_property
    def backbone(self) -> ClipBackbone:
        """A CLIP with random weights on the device."""
        begin = time.perf_counter()
        backbone = make_backbone(self.arch)
        backbone.to(self.device)
        self.wait()
        self.made = time.perf_counter() - begin
        return backbone

    @cached_property
    def grid(self) -> Grid:
        """The grid of `benchmarks.speed` on the backbone, without CUDA graphs."""
        return Grid(self.backbone, self.epochs)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], Any], times: int = 1, warm: int = 1) -> float:
        """Mean seconds of `work`, after `warm` calls that are not counted."""
        for _ in range(warm):
            work()
        self.wait()
        begin = time.perf_counter()
        for _ in range(times):
            work()
        self.wait()
        return (time.perf_counter() - begin) / times

    def found(self, part: str) -> Line:
        """The last good line of a part; empty without one."""
        good = [line for line in self.lines if line["part"] == part and line["status"] != "failed"]
        return good[-1] if good else {}


# Where each part is; imported when it runs, so that one that cannot be imported stops no other.
PARTS = {
    "machine": "machine.run", "methods": "methods.run", "golden": "golden.run",
    "grid": "training.grid", "plain": "training.plain", "encoding": "encoding.run",
    "memory": "memory.run", "commands": "commands.run", "compile": "training.compiled",
}  # fmt: skip


def part(name: str) -> Callable[[Bench], Iterator[Line]]:
    """What gives the lines of a part; a line without `status` is ok."""
    module, _, function = PARTS[name].partition(".")
    found: Callable[[Bench], Iterator[Line]] = getattr(
        import_module(f"benchmarks.gpu.{module}"), function
    )
    return found


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises OutOfTimeError in the block after so many seconds, between two Python operations; and
    again, where it was raised in a callback whose errors are ignored."""

    def stop(*_: object) -> None:
        raise OutOfTimeError

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(0.01, seconds), AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def run_part(bench: Bench, name: str, seconds: float) -> None:
    """One part; whatever goes wrong is a line."""
    lap = begin = time.perf_counter()

    def keep(line: Line) -> None:
        nonlocal lap
        now = time.perf_counter()
        line = {"part": name, "status": "ok", "seconds": round(now - lap, 3), **line}
        lap = now
        bench.lines.append(line)
        append(bench.out, line)

    try:
        with limited(seconds):
            for line in part(name)(bench):
                keep(line)
    except NoCudaError:
        keep({"status": "skipped: no CUDA"})
    except OutOfTimeError:
        keep({"status": "timed out", "error": f"its limit of {seconds:.0f} s"})
    except Exception as error:
        traceback.print_exc()
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error}"[:2000]
        keep(
            {"status": "failed", "error": text, "at": f"{Path(where.filename).name}:{where.lineno}"}
        )
    print(f"{name}: {time.perf_counter() - begin:.1f} s", file=sys.stderr, flush=True)


def device_of(name: str) -> torch.device:
    """The device that `name` asks for; one of CUDA with its number, which PyTorch wants to set it
    as the process's own, and to cap its memory."""
    device = torch.device(name)
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def work(args: argparse.Namespace) -> int:
    """Run the parts that `args` names; 3 where the device is of no more use to later parts."""
    device = device_of(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("PyTorch finds no CUDA device; --device cpu --quick rehearses", file=sys.stderr)
        return 2
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.zeros(1, device=device)  # its context belongs to the start
    # TF32 is off unless a measurement turns it on.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    # Who watches reads the lines; what libraries print belongs to the log.
    sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    file = args.out / "results.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    bench = Bench(
        device, args.quick, args.out, args.golden, time.monotonic() - STARTED, lines
    )  # fmt: skip
    end = time.monotonic() + args.seconds - bench.startup
    for name in args.parts:
        print(f"begin {name}", flush=True)
        # Others may use the cores of a rehearsal.
        limit = LIMITS[name] * (2 if args.quick else 1)
        run_part(bench, name, min(limit, end - time.monotonic()))
        print("end", flush=True)
        if bench.cuda:
            try:
                torch.zeros(1, device=device).item()
            except RuntimeError:  # after some errors nothing works on the device any more
                return 3
    return 0
