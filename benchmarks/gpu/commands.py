"""`vipbench run` as a user starts it: the demo, and two workers on one device."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.methods import furthest
from benchmarks.gpu.worker import Bench, Line
from vipbench.results import Predictions, Store

REPO = Path(__file__).resolve().parents[2]


def run(bench: Bench) -> Iterator[Line]:
    """A line for each command: seconds, and whether both gave the same."""
    some = ["--shots", "1", "--seeds", "1,2"]
    if bench.quick:
        some += ["--methods", "zero-shot,coop", "--set", "coop.epochs=2"]
    else:
        some = ["--shots", "1,4", "--seeds", "1,2"]
    with tempfile.TemporaryDirectory() as folder:
        yield from both(bench, some, Path(folder))


def both(bench: Bench, some: list[str], place: Path) -> Iterator[Line]:
    """With one worker, then with two; each with a cache of its own."""
    found: dict[int, dict[str, Predictions]] = {}
    for workers in (1, 2):
        folder = place / f"run-{workers}"
        command = [sys.executable, "-m", "vipbench", "run", "--device", str(bench.device),
                   "--workers", str(workers), "--out", str(folder), *some]  # fmt: skip
        begin = time.perf_counter()
        done = subprocess.run(
            command, cwd=place, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False,
            env={**os.environ, "VIPBENCH_CACHE": str(place / f"cache-{workers}"),
                 "PYTHONPATH": os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])},
        )  # fmt: skip
        taken = time.perf_counter() - begin
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        line: Line = {"workers": workers, "exit": done.returncode, "run_s": taken}
        if done.returncode:
            yield line | {"status": "failed", "error": done.stderr[-1500:]}
            continue
        found[workers] = predictions(folder)
        line["cells"] = len(found[workers])
        if len(found) == 2:
            apart = (
                max(furthest(found[1][key].scores, found[2][key].scores) for key in found[1])
                if found[1].keys() == found[2].keys()
                else float("inf")
            )
            line |= {"apart": apart, "status": "ok" if apart <= 1e-4 else "wrong"}
        yield line


def predictions(folder: Path) -> dict[str, Predictions]:
    """Key of a cell -> its scores."""
    with Store(folder, readonly=True) as store:
        found = {record.key: store.predictions(record.key) for record in store.records()}
    return {key: value for key, value in found.items() if value is not None}
