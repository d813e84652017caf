"""What recording a training's steps as a CUDA graph saves: the same training with and without.

    python -m benchmarks.speed.graphs

Both trainings are of the same cells as one, on a text tower of ViT-B/16's size with random
weights, and must give the same losses up to rounding. It needs a CUDA device.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import statistics
import sys
import time
from collections.abc import Sequence

import torch

from benchmarks.speed.grid import METHODS, Grid, make_backbone
from vipbench.api import Support
from vipbench.engine.evaluation.runner import GroupRunner
from vipbench.engine.machine import free_memory
from vipbench.engine.seeding import cell_generator
from vipbench.engine.training.cuda_graphs import VARIABLE, Replays, replays
from vipbench.engine.training.stacking import TrainCell, can_stack
from vipbench.engine.training.trainer import train


def cells_of(grid: Grid, name: str, shots: int, n: int) -> list[TrainCell]:
    """`n` cells of a method, freshly built; made-up features stand for the images."""
    planned = next(c for c in grid.cells(name) if c.shots == shots)
    device, made = grid.backbone.device, []
    for seed in range(n):
        generator = cell_generator("graphs", shots, seed)
        task = GroupRunner(grid.features, print)._task(planned, grid.data)
        task = dataclasses.replace(task, generator=generator)
        method = planned.row.method(task, planned.hparams).to(device)
        x = torch.randn(2 * shots, grid.backbone.dim, generator=generator("features"))
        labels = torch.arange(2 * shots, device=device) % 2
        support = Support(x.to(device), labels, 2, shots)
        recipe = planned.hparams.recipe(planned.info)
        assert recipe is not None
        # Every epoch sees the same features: encoding is no part of what is measured.
        made.append(TrainCell(method.train(), recipe, support, generator))
    assert n == 1 or can_stack(made)
    return made


def timed(cells: Sequence[TrainCell], repeats: Replays | None) -> list[float]:
    """Seconds of each step of a training; the device has then done it."""
    stamps = [time.perf_counter()]

    def stamp(_: float) -> None:
        if cells[0].method.task.device.type == "cuda":
            torch.cuda.synchronize()
        stamps.append(time.perf_counter())

    train(cells, stamp, repeats)
    return [b - a for a, b in itertools.pairwise(stamps)]


def compare(grid: Grid, name: str, n: int, repeats: Replays, shots: int = 4) -> str:
    """One line on a method: `n` cells as one, without a recording and with it."""
    plain, repeated = (cells_of(grid, name, shots, n) for _ in range(2))
    before = timed(plain, None)
    done = repeats.replayed
    after = timed(repeated, repeats)
    share = (repeats.replayed - done) / len(after)
    apart = max(
        abs(a - b)
        for one, other in zip(plain, repeated, strict=True)
        for a, b in zip(one.losses, other.losses, strict=True)
    )
    # The first steps of either hold what is done once.
    alone, with_graph = (statistics.median(seconds[3:]) for seconds in (before, after))
    return (
        f"{name}, {n} cells: a step takes {alone:.2e} s, with a graph {with_graph:.2e} s: "
        f"{alone / with_graph:.2f} times less; whole trainings {sum(before):.2f} s and "
        f"{sum(after):.2f} s; {share:.0%} of {len(after)} steps were repeated; losses differ by "
        f"at most {apart:.1e}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 2 without a CUDA device."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", default="ViT-B-16")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--cells", type=int, nargs="*", default=[1, 15])
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(
            "benchmarks.speed.graphs needs a CUDA device, and PyTorch finds none: graphs are "
            "recorded on a GPU alone",
            file=sys.stderr,
        )
        return 2
    backbone = make_backbone(args.arch)
    backbone.to("cuda")
    backbone.training_precision = args.precision
    backbone.memory_budget = free_memory(backbone.device) // 4  # as the engine does
    os.environ[VARIABLE] = "1"
    repeats = replays(backbone.device, print)
    assert repeats is not None
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {args.precision}")
    grid = Grid(backbone, args.epochs, args.precision)
    for name in METHODS:
        for n in args.cells:
            print(compare(grid, name, n, repeats), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
