"""Memory: the planner's estimate beside what a run takes, and a run that gets too little."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch

from benchmarks.gpu.methods import furthest, scores
from benchmarks.gpu.worker import Bench, Line, NoCudaError
from vipbench.engine.evaluation.estimate import Estimator
from vipbench.engine.evaluation.runner import GroupRunner

# The estimate may be so many times the peak, either way.
WITHIN = 2.0


def run(bench: Bench) -> Iterator[Line]:
    """For two methods the estimate and the peak; then a cap below what all cells at once take."""
    grid = bench.grid
    for name in ("coop", "vip"):
        cells, runner = grid.cells(name), GroupRunner(grid.features, print)
        reset(bench)
        told = Estimator().group(runner, cells)
        reset(bench)
        done = [*chain.from_iterable(GroupRunner(grid.features, print).run(cells))]
        line: Line = {"method": name, "estimate_bytes": told.get("memory_bytes"),
                      "note": told["note"]}  # fmt: skip
        if bench.cuda:
            peak = torch.cuda.max_memory_allocated(bench.device)
            ratio = told["memory_bytes"] / peak if "memory_bytes" in told else 0.0
            line |= {"peak_bytes": peak, "ratio": ratio,
                     "status": "ok" if 1 / WITHIN <= ratio <= WITHIN else "wrong"}  # fmt: skip
        else:
            line["peak"] = "skipped: no CUDA"
        if not all(one.record.ok for one in done):
            line |= {"status": "failed", "error": str(done[0].record.error)[:2000]}
        yield line
    if not bench.cuda:
        raise NoCudaError
    yield capped(bench)


def capped(bench: Bench, name: str = "coop") -> Line:
    """The same cells under a cap that all of them at once exceed: the same numbers."""
    grid, cells = bench.grid, bench.grid.cells(name)
    reset(bench)
    base = torch.cuda.memory_allocated(bench.device)
    wanted = [*chain.from_iterable(GroupRunner(grid.features, print).run(cells))]
    peak = torch.cuda.max_memory_allocated(bench.device)
    reset(bench)
    cap = base + int(0.6 * (peak - base))
    whole = torch.cuda.get_device_properties(bench.device).total_memory
    notes: list[str] = []
    torch.cuda.set_per_process_memory_fraction(cap / whole, bench.device)
    try:
        found = [*chain.from_iterable(GroupRunner(grid.features, notes.append).run(cells))]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, bench.device)
    bad = [one.record.error for one in found if not one.record.ok]
    line: Line = {"what": "cap", "method": name, "base_bytes": base, "peak_bytes": peak,
                  "cap_bytes": cap, "notes": notes}  # fmt: skip
    if bad:
        return line | {"status": "failed", "error": str(bad[0])[:2000]}
    apart = max(furthest(scores(a), scores(b)) for a, b in zip(found, wanted, strict=True))
    halved = sum("out_of_memory" in one.record.provenance for one in found)
    right = bool(halved) and apart <= 1e-4
    return line | {"halved_cells": halved, "apart": apart, "status": "ok" if right else "wrong"}


def reset(bench: Bench) -> None:
    """Forget the peak, and give unused memory back to the device."""
    if bench.cuda:
        bench.wait()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(bench.device)
