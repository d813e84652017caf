"""The grid of three methods after features: one step after another, by CUDA graphs, as a plain
loop does it, and compiled."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from benchmarks.gpu.methods import furthest, scores
from benchmarks.gpu.worker import Bench, Line, NoCudaError
from benchmarks.speed.graphs import cells_of
from benchmarks.speed.grid import METHODS, SEEDS, SHOTS, SYMPTOMS, TEST, Grid
from benchmarks.speed.parts import method_of
from benchmarks.speed.plain import Cell, Plain, step
from vipbench.engine.evaluation.scoring import Finished
from vipbench.engine.machine import free_memory
from vipbench.engine.training.batches import Batches, schedule
from vipbench.engine.training.cuda_graphs import VARIABLE
from vipbench.engine.training.step import Step

# Seconds that the 15 cells of a method should take after features; the longest last.
GOALS = {"coop": 1.0, "vip": 1.0, "cocoop": 4.0}


def grid(bench: Bench) -> Iterator[Line]:
    """For each method the seconds of 15 cells, steps one by one and with CUDA graphs."""
    plain = bench.grid
    features = plain.encode()
    yield {"what": "features", "images": 32 + TEST, "features_s": features,
           "startup_s": bench.startup, "backbone_s": bench.made}  # fmt: skip
    recorded = None
    if bench.cuda:
        os.environ[VARIABLE] = "1"
        recorded = Grid(bench.backbone, bench.epochs)
        recorded.features = plain.features
        del os.environ[VARIABLE]
    if bench.cuda:
        plain.run(METHODS[0])  # the libraries load their kernels
    for name in GOALS:
        taken, done = plain.run(name)
        line: Line = {"method": name, "epochs": bench.epochs, "steps_s": taken,
                      "goal_s": None if bench.quick else GOALS[name]}  # fmt: skip
        best = taken
        if recorded is not None:
            assert recorded.replays is not None
            before = recorded.replays.replayed
            with_graphs, again = recorded.run(name)
            apart = max(furthest(scores(a), scores(b)) for a, b in zip(done, again, strict=True))
            line |= {
                "graphs_s": with_graphs, "graphs_ratio": taken / with_graphs,
                "replayed_steps": recorded.replays.replayed - before, "graphs_apart": apart,
            }  # fmt: skip
            best = min(best, with_graphs)
        else:
            line["graphs"] = "skipped: no CUDA"
        line |= profiled(bench, name)
        line["status"] = judged(done, best, line)
        yield line


def judged(done: Sequence[Finished], best: float, line: Line) -> str:
    bad = [one for one in done if not one.record.ok]
    if bad:
        line["error"] = str(bad[0].record.error)[:2000]
        return "failed"
    line["reached"] = line["goal_s"] is None or best <= line["goal_s"]
    return "ok" if line["reached"] and line.get("graphs_apart", 0.0) <= 1e-4 else "wrong"


def profiled(bench: Bench, name: str, steps: int = 5) -> Line:
    """Operations started in a step of 15 cells, and the share of it in which the device idles."""
    state, batches = stacked(bench, name)
    for number in range(2):
        state.set(batches.write(number), number)
        state()
    bench.wait()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if bench.cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as seen:
        for _ in range(steps):
            state()
        bench.wait()
    begin = time.perf_counter()
    for _ in range(steps):
        state()
    bench.wait()
    each = (time.perf_counter() - begin) / steps
    device = torch.autograd.DeviceType.CUDA
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in seen.events()
        if event.device_type == device
    )
    if not bench.cuda:
        ops = sum(event.name.startswith("aten::") for event in seen.events())
        return {"operations_per_step": ops / steps, "step_s": each, "idle": "skipped: no CUDA"}
    busy = merged(spans) / 1e6 / steps
    return {"launches_per_step": len(spans) / steps, "step_s": each, "busy_s": busy,
            "idle_share": max(0.0, 1 - busy / each)}  # fmt: skip


def merged(spans: Sequence[tuple[float, float]]) -> float:
    """The length that spans, in the order of their starts, cover."""
    total, end = 0.0, float("-inf")
    for start, stop in spans:
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def stacked(bench: Bench, name: str) -> tuple[Step, Batches]:
    """The step of 15 cells of 4 shots (2 at toy size), and its batches."""
    bench.backbone.memory_budget = free_memory(bench.device) // 4  # as the engine does
    cells = cells_of(bench.grid, name, 4, 2 if bench.quick else 15)
    plans = [schedule(cell) for cell in cells]
    return Step(cells, len(plans[0].lr)), Batches(cells, plans, 0)


def plain(bench: Bench) -> Iterator[Line]:
    """The plain loop's seconds for the grid, from 20 steps of each method and size, and how many
    times longer that is than the part `grid`."""
    clip = bench.backbone
    problem = Plain(clip._model, list(SYMPTOMS), [list(row) for row in SYMPTOMS.values()])
    steps = 2 if bench.quick else 20
    total, each = 0.0, {}
    size = clip.image_size
    pixels = torch.randn(32, 3, size, size, device=bench.device)
    image_s = bench.seconds(lambda: problem.images(pixels), max(2, steps // 4)) / 32
    for name in METHODS:
        for shots in SHOTS:
            n = 2 * shots
            batch = 1 if name == "cocoop" else n
            method, _, _ = method_of(bench.grid, name, shots, 1)
            start = {k: p.detach().to(bench.device) for k, p in method.named_parameters()}
            cell = Cell(problem, name, start)
            optimizer = torch.optim.SGD(
                cell.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4
            )  # fmt: skip
            labels = torch.arange(batch, device=bench.device) % 2

            def once(c: Cell = cell, o: Any = optimizer, b: int = batch, y: Any = labels) -> None:
                step(c, o, problem.images(pixels[:b]), y)

            each[f"{name}, {shots} shots"] = taken = bench.seconds(once, steps, warm=2)
            total += len(SEEDS) * bench.epochs * (n if name == "cocoop" else 1) * taken
            few = 4 if name == "cocoop" else 32
            with torch.no_grad():
                x = torch.randn(few, clip.dim, device=bench.device)
                test = bench.seconds(lambda c=cell, x=x: c(x), 1) / few
            total += len(SEEDS) * TEST * (test + image_s)
    line: Line = {"plain_s": total, "image_s": image_s, "step_s": each}
    lines = [one for one in bench.lines if one["part"] == "grid" and "steps_s" in one]
    newest = {one["method"]: one for one in lines}
    if newest.keys() >= set(METHODS):
        first = [one for one in bench.lines if "features_s" in one][-1]
        ours = first["features_s"] + sum(
            min(one["steps_s"], one.get("graphs_s", one["steps_s"])) for one in newest.values()
        )
        start_s = first["startup_s"] + first["backbone_s"]
        line |= {"vipbench_s": ours, "start_s": start_s, "ratio": total / ours,
                 "ratio_with_start": total / (ours + start_s)}  # fmt: skip
        if not bench.quick:
            line["goals"] = {"ratio": 70, "ratio_with_start": 30}
            reached = line["ratio"] >= 70 and line["ratio_with_start"] >= 30
            line["status"] = "ok" if reached else "wrong"
    yield line


def compiled(bench: Bench) -> Iterator[Line]:
    """`torch.compile` of the step: whether it gives the same, and what it saves."""
    if not bench.cuda and not bench.quick:
        raise NoCudaError
    for name in METHODS if bench.cuda else METHODS[:1]:
        state, batches = stacked(bench, name)
        state.set(batches.write(0), 0)
        state()  # what is done once
        before = [value.clone() for value in state.written()]
        state()
        wanted = [value.clone() for value in state.written()]
        for place, value in zip(state.written(), before, strict=True):
            place.copy_(value)
        # On a CPU the rehearsal needs no compiler.
        quicker: Any = torch.compile(state.__call__, backend="inductor" if bench.cuda else "eager")
        begin = time.perf_counter()
        try:
            quicker()
        except Exception as error:
            text = f"{type(error).__name__}: {error}"[:1000]
            yield {"method": name, "compiles": False, "why": text}
            continue
        bench.wait()
        compile_s = time.perf_counter() - begin
        apart = max(
            furthest(a.cpu(), b.cpu()) for a, b in zip(state.written(), wanted, strict=True)
        )
        usual = bench.seconds(state, 10)
        taken = bench.seconds(quicker, 10)
        yield {"method": name, "compiles": True, "compile_s": compile_s, "apart": apart,
               "step_s": usual, "compiled_s": taken, "ratio": usual / taken,
               "status": "ok" if apart <= 1e-4 else "wrong"}  # fmt: skip
