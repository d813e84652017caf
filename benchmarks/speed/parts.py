"""Parts of the work by themselves: an image, and a context of CoCoOp beside one of CoOp."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.speed.grid import SHOTS, Grid
from benchmarks.speed.plain import Plain
from benchmarks.speed.text import M, alternately
from vipbench.api import Support
from vipbench.engine.evaluation.runner import GroupRunner
from vipbench.engine.training.stacking import TrainCell
from vipbench.engine.training.trainer import train

CELLS, STEPS, SHOTS_OF_STEPS = 15, 8, 4


def method_of(grid: Grid, name: str, shots: int, epochs: int, **others: Any) -> tuple[Any, ...]:
    """A method of vipbench, freshly built, its recipe and its cell's generator. others:
    hyperparameters."""
    cell = next(c for c in grid.cells(name) if c.shots == shots and c.seed == 1)
    hparams = type(cell.hparams)(**{**vars(cell.hparams), "epochs": epochs, **others})
    task = GroupRunner(grid.features, print)._task(cell, grid.data)
    return cell.row.method(task, hparams), hparams.recipe(cell.info), task.generator


def image_pass(grid: Grid, plain: Plain, times: int) -> dict[str, float]:
    """Seconds of an image in a batch of 32 through open_clip's tower and through vipbench's, fp32,
    and how far their features are apart."""
    size, backbone = grid.backbone.image_size, grid.backbone
    pixels = torch.randn(32, 3, size, size, device=backbone.device)
    with torch.no_grad():
        apart = (plain.images(pixels) - backbone.encode_image(pixels)).abs().max()
        theirs, ours = alternately(
            times, lambda: plain.images(pixels).sum().item(),
            lambda: backbone.encode_image(pixels).sum().item(),
        )  # fmt: skip
    found = {"plain_s": theirs / 32, "vipbench_s": ours / 32, "ratio": theirs / ours}
    return found | {"apart": float(apart)}


def context_cost(grid: Grid, times: int) -> dict[str, float]:
    """Seconds of a training step for each of 15 contexts, one a cell and so many steps: CoOp's
    shared by a batch, CoCoOp's made from an image by its network; four vectors each."""
    assert SHOTS_OF_STEPS in SHOTS
    rows = next(c for c in grid.cells("coop") if (c.shots, c.seed) == (SHOTS_OF_STEPS, 1))
    picked = rows.support.train.tolist()
    x = grid.features.plain("train", picked)
    labels = torch.tensor(grid.data.splits["train"].labels[picked], device=x.device)

    def training(name: str, epochs: int, **others: Any) -> None:
        cells = []
        for _ in range(CELLS):
            method, recipe, generator = method_of(grid, name, SHOTS_OF_STEPS, epochs, **others)
            cells.append(TrainCell(method, recipe, Support(x, labels, 2, 4), generator))
        train(cells)
        assert all(len(cell.losses) == STEPS for cell in cells)

    coop, cocoop = alternately(
        times, lambda: training("coop", STEPS, n_ctx=M),
        lambda: training("cocoop", STEPS // len(picked)),
    )  # fmt: skip
    each = CELLS * STEPS
    return {"coop_s": coop / each, "cocoop_s": cocoop / each, "cocoop_over_coop": cocoop / coop}
