"""How much work vipbench saves: one grid, done plainly and by vipbench, in one process.

    python -m benchmarks.speed                     # ViT-B/16, the whole grid by vipbench
    python -m benchmarks.speed --quick             # ViT-B/32, 4 epochs, a few minutes

The plain way is timed on real steps and added up to the grid, since the whole of it would take
hours; vipbench runs the grid in full. Both start from the same values, see the same batches and
must give the same losses, which is checked on one cell of each method.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("VIPBENCH_CACHE", tempfile.mkdtemp(prefix="vipbench-speed-"))

import itertools

import open_clip
import torch

from benchmarks.speed.grid import (
    METHODS,
    SEEDS,
    SHOTS,
    SYMPTOMS,
    TEST,
    Grid,
    make_backbone,
    peak_memory,
)
from benchmarks.speed.plain import Cell, Plain, step
from vipbench.api import Support
from vipbench.engine.seeding import cell_generator
from vipbench.engine.stacking import TrainCell, schedule
from vipbench.engine.training import train

RESULTS = Path(__file__).parents[1] / "results"


def seconds(function: Callable[[], Any], times: int) -> float:
    """Median seconds of a call, the first one not counted."""
    function()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def problem(grid: Grid) -> Plain:
    """The same towers and texts for the plain way."""
    return Plain(grid.backbone._model, list(SYMPTOMS), [list(s) for s in SYMPTOMS.values()])  # type: ignore[attr-defined]


def method_of(grid: Grid, name: str, shots: int, epochs: int) -> tuple[Any, Any, Any]:
    """A method of vipbench, freshly built, its recipe and its cell's generator."""
    cell = next(c for c in grid.cells(name) if c.shots == shots and c.seed == 1)
    from vipbench.engine.cells import GroupRunner

    runner = GroupRunner(grid.features, print)
    hparams = type(cell.hparams)(**{**vars(cell.hparams), "epochs": epochs})
    task = runner._task(cell)
    return cell.row.method(task, hparams), hparams.recipe(cell.info), task.generator


def plain_cell(grid: Grid, name: str, shots: int) -> Cell:
    """The plain form of a cell, from the same initial values."""
    method, _, _ = method_of(grid, name, shots, 2)
    start = {n: p.detach() for n, p in method.named_parameters()}
    return Cell(problem(grid), name, start)


def same_losses(grid: Grid, name: str, epochs: int = 3) -> float:
    """Largest difference of a step's loss over a short training, relative to max(1, loss)."""
    method, recipe, generator = method_of(grid, name, 4, epochs)
    rows = next(c for c in grid.cells(name) if c.shots == 4 and c.seed == 1).support.train.tolist()
    x = grid.features.plain("train", rows)
    labels = torch.tensor(grid.data.splits["train"].labels[rows])
    ours = TrainCell(method, recipe, Support(x, labels, 2, 4), generator)
    plan = schedule(ours)
    theirs = plain_cell(grid, name, 4)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=1.0, momentum=0.9, weight_decay=5e-4)
    losses = []
    for i, lr in enumerate(plan.lr):
        optimizer.param_groups[0]["lr"] = lr
        picked = plan.rows[i][plan.weight[i] > 0]
        losses.append(step(theirs, optimizer, x[picked], labels[picked]))
    train([ours])
    pairs = zip(ours.losses, losses, strict=True)
    return max(abs(a - b) / max(1.0, b) for a, b in pairs)


def plain_parts(grid: Grid, times: int) -> dict[str, float]:
    """Seconds of what the plain way does: an image, and each method's text step."""
    p = problem(grid)
    pixels = torch.randn(32, 3, grid.backbone.image_size, grid.backbone.image_size)
    parts = {"image": seconds(lambda: p.images(pixels), max(2, times // 3)) / 32}
    for name in METHODS:
        cell = plain_cell(grid, name, 16)
        optimizer = torch.optim.SGD(cell.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
        batch = 1 if name == "cocoop" else 32
        x, labels = torch.randn(batch, grid.backbone.dim), torch.arange(batch) % 2
        parts[name] = seconds(lambda c=cell, o=optimizer, x=x, y=labels: step(c, o, x, y), times)
        with torch.no_grad():
            many = torch.randn(4 if name == "cocoop" else 32, grid.backbone.dim)
            test = seconds(lambda c=cell, m=many: c(m), max(2, times // 3))
        # CoCoOp's test needs a text pass for each image, the others' one a batch.
        parts[f"{name}-test"] = test / len(many)
    return parts


def plain_seconds(parts: dict[str, float], name: str, epochs: int) -> tuple[float, float]:
    """Seconds of one method's 15 cells the plain way: images, and everything else."""
    images = steps = 0
    for shots in SHOTS:
        n = 2 * shots
        images += len(SEEDS) * (epochs * n + TEST)
        steps += len(SEEDS) * epochs * (n if name == "cocoop" else 1)
    tests = len(SHOTS) * len(SEEDS) * TEST * parts[f"{name}-test"]
    return images * parts["image"], steps * parts[name] + tests


def text_step(grid: Grid, name: str, times: int) -> float:
    """Seconds a cell of one step of 15 stacked cells on ready features."""
    cells = []
    for i in range(15):
        method, recipe, _ = method_of(grid, name, 16, times + 1)
        support = Support(torch.randn(32, grid.backbone.dim), torch.arange(32) % 2, 2, 16)
        cells.append(TrainCell(method, recipe, support, cell_generator("speed", 16, i)))
    marks: list[float] = []
    train(cells, lambda share: marks.append(time.perf_counter()))
    gaps = [b - a for a, b in itertools.pairwise(marks)]
    return statistics.median(gaps) / 15


def matmul_peak() -> float:
    """Measured fp32 matrix products a second, in 1e9 multiply-adds x 2."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return 2 * 2048**3 / seconds(lambda: a @ b, 8) / 1e9


def main() -> None:
    """Measure and write down."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", default="ViT-B-16")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="ViT-B-32, 4 epochs, fewer timings")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("-o", "--out", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    arch, epochs, times = args.arch, args.epochs, 6
    if args.quick:
        arch, epochs, times = "ViT-B-32", 4, 3
    backbone = make_backbone(arch)
    results: dict[str, Any] = {
        "arch": arch, "epochs": epochs, "threads": args.threads,
        "device": platform.processor() or platform.machine(), "cpu": cpu_name(),
        "torch": torch.__version__, "open_clip": open_clip.__version__,
    }  # fmt: skip
    grid = Grid(backbone, epochs)
    results["features_s"] = grid.encode()
    say(f"vipbench: {32 + TEST} images encoded once in {results['features_s']:.1f} s")
    for name in METHODS:
        results[f"loss_difference_{name}"] = same_losses(grid, name)
        say(f"{name}: losses differ by at most {results[f'loss_difference_{name}']:.1e}")
    results["plain_parts_s"] = parts = plain_parts(grid, times)
    say(f"plain parts: { ({k: round(v, 4) for k, v in parts.items()}) }")
    for precision in ("fp32", "bf16"):
        grid.precision = precision
        total = plain_total = 0.0
        for name in METHODS:
            taken, finished = grid.run(name)
            assert all(f.record.ok for f in finished), finished[0].record.error
            images, rest = plain_seconds(parts, name, epochs)
            results[f"{precision}/{name}"] = {"vipbench_s": taken, "plain_images_s": images,
                                             "plain_rest_s": rest}  # fmt: skip
            total, plain_total = total + taken, plain_total + images + rest
            say(f"{precision} {name}: vipbench {taken:.1f} s, plain {images + rest:.0f} s")
        total += results["features_s"]
        results[f"{precision}/grid"] = {"vipbench_s": total, "plain_s": plain_total,
                                       "ratio": plain_total / total}  # fmt: skip
        say(f"{precision} whole grid, features included: {plain_total / total:.1f} times less time")
        for name in ("coop", "vip"):
            own = text_step(grid, name, times)
            results[f"{precision}/text-step/{name}"] = ratio = parts[name] / own
            say(f"{precision} text step of {name}, 15 cells stacked, per cell: {ratio:.1f} times")
        # The last setting stays until it is taken back.
        backbone.training_precision = "fp32"
    results["matmul_gflops"] = matmul_peak()
    results["peak_memory_gb"] = peak_memory()
    RESULTS.mkdir(exist_ok=True)
    out = args.out or RESULTS / f"speed-{arch}-{'quick' if args.quick else 'full'}.json"
    out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    say(f"written to {out.name}")


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    name = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), "")
    return f"{name}, {os.cpu_count()} cores"


def say(text: str) -> None:
    """Print at once, for logs."""
    print(text, flush=True)


if __name__ == "__main__":
    main()
