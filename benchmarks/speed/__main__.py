"""How much work vipbench saves: one grid, done plainly and by vipbench, in one process.

    python -m benchmarks.speed                     # ViT-B/16, the whole grid by vipbench
    python -m benchmarks.speed --quick             # ViT-B/32, 4 epochs, a few minutes
    python -m benchmarks.speed --quick --arch ViT-L-14

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
from benchmarks.speed.parts import context_cost, image_pass, method_of
from benchmarks.speed.plain import Cell, Plain, step
from benchmarks.speed.text import growth, memory_of_many, read_texts, text_pass
from vipbench.api import Support
from vipbench.backbones.towers.linear import constant_linear
from vipbench.engine.training.batches import schedule
from vipbench.engine.training.stacking import TrainCell
from vipbench.engine.training.trainer import train

RESULTS = Path(__file__).parents[1] / "results"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def seconds(function: Callable[[], Any], times: int) -> float:
    """Median seconds of a call, the first one not counted."""
    function()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def problem(grid: Grid) -> Plain:
    """The same towers and texts for the plain way."""
    return Plain(grid.backbone._model, list(SYMPTOMS), [list(s) for s in SYMPTOMS.values()])  # type: ignore[attr-defined]


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
    labels = torch.tensor(grid.data.splits["train"].labels[rows], device=DEVICE)
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
    pixels = torch.randn(32, 3, grid.backbone.image_size, grid.backbone.image_size, device=DEVICE)
    parts = {"image": seconds(lambda: p.images(pixels), max(2, times // 3)) / 32}
    for name in METHODS:
        cell = plain_cell(grid, name, 16)
        optimizer = torch.optim.SGD(cell.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
        batch = 1 if name == "cocoop" else 32
        x = torch.randn(batch, grid.backbone.dim, device=DEVICE)
        labels = torch.arange(batch, device=DEVICE) % 2
        parts[name] = seconds(lambda c=cell, o=optimizer, x=x, y=labels: step(c, o, x, y), times)
        with torch.no_grad():
            many = torch.randn(4 if name == "cocoop" else 32, grid.backbone.dim, device=DEVICE)
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


def matmul_peak(half: bool) -> float:
    """Measured products of large matrices, in 1e9 multiplications and additions a second: of the
    faster library, where PyTorch has two."""
    a, b = torch.randn(2048, 2048, device=DEVICE), torch.randn(2048, 2048, device=DEVICE)
    if half:
        a, b = a.bfloat16(), b.bfloat16()
    best = 1e9
    for _ in range(12):
        for product in (torch.matmul, constant_linear):
            start = time.perf_counter()
            product(a, b)
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
    return 2 * 2048**3 / best / 1e9


def text_passes(grid: Grid, files: list[Path], times: int, peak: float) -> dict[str, Any]:
    """The text pass alone on our texts and on those of `files`."""
    own = [text for row in SYMPTOMS.values() for text in row]
    sets = {"own": own} | {file.stem: read_texts(file) for file in files}
    found = {}
    for name, texts in sets.items():
        found[name] = each = text_pass(grid.backbone, texts, times, peak)  # type: ignore[arg-type]
        say(f"{grid.precision} text pass, {name}: {each['1 cells']['ratio']:.1f} times less alone, "
            f"{each['15 cells']['ratio']:.1f} with 15 cells as one; "
            f"{each['share_of_peak']:.0%} of the products' peak")  # fmt: skip
    return found


def per_epoch_views(epochs: int) -> int:
    """Images that the whole grid encodes beyond the evaluation view with augmented views of every
    epoch: 32 images under each seed; all methods and, support sets being nested, shots share."""
    return len(SEEDS) * 2 * max(SHOTS) * epochs


def main() -> None:
    """Measure and write down."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", help="of open_clip; otherwise ViT-B-16, or ViT-B-32 with --quick")
    parser.add_argument("--epochs", type=int, help="otherwise 50, or 4 with --quick")
    parser.add_argument("--quick", action="store_true", help="fewer epochs, timings and classes")
    parser.add_argument("--symptoms", type=Path, nargs="*", default=[], metavar="FILE",
                        help="more texts for the text pass: {class: [symptom, ...]}")  # fmt: skip
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("-o", "--out", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    arch = args.arch or ("ViT-B-32" if args.quick else "ViT-B-16")
    epochs, times = args.epochs or (4 if args.quick else 50), 3 if args.quick else 6
    backbone = make_backbone(arch)
    backbone.to(DEVICE)
    results: dict[str, Any] = {
        "arch": arch, "epochs": epochs, "threads": args.threads, "device": device_name(),
        "torch": torch.__version__, "open_clip": open_clip.__version__,
    }  # fmt: skip
    grid = Grid(backbone, epochs)
    results["features_s"] = grid.encode()
    image_s = results["features_s"] / (32 + TEST)
    say(f"vipbench: {32 + TEST} images encoded once in {results['features_s']:.1f} s")
    for name in METHODS:
        results[f"loss_difference_{name}"] = same_losses(grid, name)
        say(f"{name}: losses differ by at most {results[f'loss_difference_{name}']:.1e}")
    results["plain_parts_s"] = parts = plain_parts(grid, times)
    results["image"] = image = image_pass(grid, problem(grid), times)
    say(
        f"image tower: {image['ratio']:.2f} times less than open_clip's, {image['apart']:.1e} apart"
    )
    say(f"plain parts: { ({k: round(v, 4) for k, v in parts.items()}) }")
    for precision in ("fp32", "bf16"):
        grid.precision = precision
        spent: dict[str, float] = {}
        plain_total = 0.0
        for name in METHODS:
            spent[name], finished = grid.run(name)
            assert all(f.record.ok for f in finished), finished[0].record.error
            images, rest = plain_seconds(parts, name, epochs)
            results[f"{precision}/{name}"] = {"vipbench_s": spent[name], "plain_images_s": images,
                                             "plain_rest_s": rest}  # fmt: skip
            plain_total += images + rest
            say(f"{precision} {name}: vipbench {spent[name]:.1f} s, plain {images + rest:.0f} s")
        features = results["features_s"]
        total = sum(spent.values()) + features
        views = total + per_epoch_views(epochs) * image_s
        results[f"{precision}/grid"] = {
            "vipbench_s": total, "plain_s": plain_total, "ratio": plain_total / total,
            "with_views_of_every_epoch_s": views, "ratio_with_views": plain_total / views,
            "cocoop_over_coop": (features + spent["cocoop"]) / (features + spent["coop"]),
        }  # fmt: skip
        say(f"{precision} whole grid, features included: {plain_total / total:.1f} times less; "
            f"{plain_total / views:.1f} with augmented views of every epoch (their encoding added "
            "up from the measured time of an image)")  # fmt: skip
        # The precision that the last cell set stays until it is taken back.
        results[f"{precision}/context"] = context = context_cost(grid, max(2, times // 3))
        say(f"{precision} a step's context: CoCoOp's takes {context['cocoop_over_coop']:.2f} times "
            "as long as CoOp's, of four vectors both")  # fmt: skip
        peak = results[f"{precision}/peak_gflops"] = matmul_peak(precision == "bf16")
        results[f"{precision}/text"] = text_passes(grid, args.symptoms, times, peak)
        if precision == "fp32":
            own = [text for row in SYMPTOMS.values() for text in row]
            results["growth_s"] = growth(backbone, own, times, 100 if args.quick else 1000)
            say(f"growth: {results['growth_s']}")
        backbone.training_precision = "fp32"
    results["peak_memory_gb"] = peak_memory()
    if DEVICE == "cpu":
        results["many_texts"] = memory_of_many(arch, 100 if args.quick else 1000)
        say(f"many classes x 10 texts: {results['many_texts']}")
    RESULTS.mkdir(exist_ok=True)
    out = args.out or RESULTS / f"speed-{arch}-{'quick' if args.quick else 'full'}.json"
    out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    say(f"written to {out.name}")


def device_name() -> str:
    """The GPU, else what the processor calls itself and how many cores there are."""
    if DEVICE == "cuda":
        return torch.cuda.get_device_name()
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
