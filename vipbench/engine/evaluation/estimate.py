"""What a group of cells will take: measured by a few steps and encodings on this machine.

Made-up features and pixels stand for the images, so that nothing has to be encoded first.
"""

from __future__ import annotations

import dataclasses
import math
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vipbench.api import Labelled, Method, Recipe, Support, Views, has_own_fit
from vipbench.engine.evaluation.runner import GroupRunner
from vipbench.engine.evaluation.scoring import trainings
from vipbench.engine.evaluation.stack_size import most_stacked
from vipbench.engine.evaluation.support import count_views, reads
from vipbench.engine.features.cache import Item
from vipbench.engine.features.features import ENCODE_BATCH, Features
from vipbench.engine.machine import wait
from vipbench.engine.planning.cells import LoadedCell
from vipbench.engine.planning.protocols import test_rows
from vipbench.engine.training.optim import total_steps
from vipbench.engine.training.stacking import TrainCell, partition
from vipbench.engine.training.trainer import train

# Steps that are timed, and of images-taking methods how many images are made up.
FEW, MANY, IMAGES = 1, 4, 64
# A pass that takes longer, in seconds, is not timed a second time.
SLOW = 2.0
# The number of views whose effect is shown where there are more.
FEW_VIEWS = 8


class Estimator:
    """Estimates of the groups of one run; what groups share is counted once, with the first."""

    def __init__(self) -> None:
        self._wanted: dict[tuple[object, ...], set[Item]] = {}
        self._pace: dict[int, tuple[float, float]] = {}

    def group(
        self, runner: GroupRunner, cells: Sequence[LoadedCell], seconds: float = math.inf
    ) -> dict[str, Any]:
        """The fields of `Estimate` but its name. seconds: after which no further cell is measured;
        the smallest always is. Never raises."""
        until = time.perf_counter() + seconds
        features, method = runner.features, cells[0].row.method
        found: dict[str, Any] = {"cells": len(cells), "note": ""}
        try:
            encode, open_image = self._image_seconds(features)
            missing, views, saved = self._missing(runner, cells)
            n_test, dim = len(features.splits["test"]), features.backbone.dim
            classes = cells[0].info.n_classes
            work, learned, measured = _work(runner, cells, open_image, until)
            found |= {
                "encode_seconds": missing * encode,
                "view_seconds": views * encode,
                "saved_seconds": saved * encode,
                "measured": measured,
                "work_seconds": work,
                "cache_bytes": missing * dim * 4,
                "result_bytes": len(cells) * (n_test * classes * 4 + learned + 20_000),
                "memory_bytes": _peak(features) + missing * dim * 4 + _pixels(features, method),
            }
        except Exception as error:  # whatever a plugin raises; the run itself will tell
            found["note"] = f"cannot be measured: {type(error).__name__}: {error}"
        if found.get("work_seconds", 0) is None:
            found["note"] = "has its own training loop on images, which cannot be timed in part"
        return found

    def _image_seconds(self, features: Features) -> tuple[float, float]:
        """Seconds to encode one image, opening included, and to open one."""
        if id(features) not in self._pace:
            n = min(ENCODE_BATCH, len(features.splits["test"]))
            items = [(i, 0) for i in range(n)]
            begin = time.perf_counter()
            features.images("test", items, (Views(), 0))
            opened = time.perf_counter() - begin
            begin = time.perf_counter()
            features.encode("test", items, None)
            encoded = time.perf_counter() - begin
            if encoded < SLOW:  # the first pass is slower
                begin = time.perf_counter()
                features.encode("test", items, None)
                encoded = time.perf_counter() - begin
            self._pace[id(features)] = encoded / n, opened / n
        return self._pace[id(features)]

    def _missing(self, runner: GroupRunner, cells: Sequence[LoadedCell]) -> tuple[int, int, int]:
        """How many images and views are to be encoded for these cells, and were for none before;
        how many of these are training views; and how many of those `--views 8` would save."""
        missing = drawn = saved = 0
        for cell in cells:
            for dataset, split, items, views in reads(cell):
                own = runner.features_of(dataset)
                for features in (own, *(runner.beside(tower, dataset) for tower in cell.further)):
                    seen = self._wanted.setdefault((id(features), split, views), set())
                    new = [item for item in dict.fromkeys(items) if item not in seen]
                    seen.update(new)
                    left = len(new) - features.cached(split, new, views)
                    missing += left
                    if views is not None and split == "train" and new:
                        drawn += left
                        saved += left * sum(view >= FEW_VIEWS for _, view in new) // len(new)
        return missing, drawn, saved


def _work(
    runner: GroupRunner, cells: Sequence[LoadedCell], open_image: float, until: float
) -> tuple[float | None, int, int]:
    """Seconds to train and score all cells, bytes that one of them learns, and how many cells were
    measured: one for each number of support images, the smallest first, until the time is up. The
    others are taken to be like the measured ones of their size, or in proportion to it."""
    images = cells[0].row.method.inputs == "images"
    every = trainings(cells)
    alike: dict[int, list[list[LoadedCell]]] = {}
    for own in every:
        alike.setdefault(own[0].info.n_support, []).append(own)
    seconds, learned, measured, pace = 0.0, 0, 0, 0.0
    for size in sorted(alike):
        some = alike[size]
        if measured and time.perf_counter() > until:
            # Per training and support image, as of the last that was measured.
            seconds += pace * max(size, 1) * len(some)
            continue
        before = seconds
        one = _measure(runner, some[0])
        if one is None:
            return None, 0, measured
        learned = max(learned, one.learned)
        measured += 1
        seconds += one.seconds * len(some)
        if one.trained is not None:
            seconds += _training(runner, one.trained, some, until)
            if images:
                per_view = size * open_image
                seconds += (
                    per_view * max(1, count_views(some[0][0], one.trained.recipe)) * len(some)
                )
        shares = sum(
            len(test_rows(cell.tested)) / len(runner.features.splits["test"])
            for own in some
            for cell in own
        )
        seconds += _scoring(runner, one.method, open_image if images else 0.0) * shares
        pace = (seconds - before) / max(size, 1) / len(some)
    return seconds, learned if learned <= 5_000_000 else 0, measured


@dataclass
class _Measured:
    """One cell. seconds: to build and prepare it, and to fit it by a loop of its own. learned:
    bytes of its parameters. trained: what the engine trains of it."""

    method: Method
    seconds: float
    learned: int
    trained: TrainCell | None


def _measure(runner: GroupRunner, own: Sequence[LoadedCell]) -> _Measured | None:
    """The first of the cells of one training; None where it cannot be timed in part."""
    cell = own[0]
    begin = time.perf_counter()
    recipe = cell.hparams.recipe(cell.info)
    support = _random_support(runner.features, cell)
    method = runner.try_build(dataclasses.replace(cell, part=None))
    if support is not None:
        method.prepare(support)
    wait(runner.features.backbone.device)
    seconds = time.perf_counter() - begin
    learned = sum(p.numel() * 4 for p in method.parameters())
    if support is not None and has_own_fit(type(method)):
        if cell.row.method.inputs == "images":
            return None
        begin = time.perf_counter()
        method.fit(support)
        wait(runner.features.backbone.device)
        seconds += time.perf_counter() - begin
    elif support is not None and recipe is not None and recipe.epochs != 0:
        trained = TrainCell(method, recipe, support, method.task.generator)
        return _Measured(method, seconds, learned, trained)
    return _Measured(method, seconds, learned, None)


def _training(
    runner: GroupRunner, one: TrainCell, some: Sequence[Sequence[LoadedCell]], until: float
) -> float:
    """Seconds to train cells like `one`. As many are trained at once as in the run, if the time
    allows it; else each is taken to be trained alone, which is an upper bound."""
    begin = time.perf_counter()
    single = _step([one])
    spent = time.perf_counter() - begin
    steps = total_steps(one.recipe, some[0][0].info.n_support)
    most = min(most_stacked(), len(some))
    if most == 1 or time.perf_counter() + most * spent > until:
        return single * steps * len(some)
    stack = [one]
    for own in some[1:most]:
        method = runner.try_build(dataclasses.replace(own[0], part=None))
        stack.append(dataclasses.replace(one, method=method, history=[], losses=[]))
    parts = [_step(part) for part in partition(stack)]
    return math.fsum(parts) * steps * len(some) / most


def _step(part: Sequence[TrainCell]) -> float:
    """Seconds of one step of cells that train as one."""
    times = []
    for steps in (FEW, MANY):
        some = [
            dataclasses.replace(cell, recipe=_shortened(cell.recipe, steps), history=[], losses=[])
            for cell in part
        ]
        begin = time.perf_counter()
        train(some)
        times.append(time.perf_counter() - begin)
    return max(times[1] - times[0], 0.0) / (MANY - FEW) or times[1] / MANY


def _shortened(recipe: Recipe, steps: int) -> Recipe:
    return dataclasses.replace(
        recipe, epochs=None, iterations=steps, schedule="constant", epoch_weights=None, pooled=False
    )


@torch.no_grad()
def _scoring(runner: GroupRunner, method: Method, open_image: float) -> float:
    """Seconds to score the test images of one cell."""
    features = runner.features
    n = len(features.splits["test"])
    some = n if "test_images" in method.needs else min(n, IMAGES)
    method.eval()
    x = _inputs(features, some, method.inputs == "images", sum(method.task.dims))
    if "test_views" in method.needs:
        views = method.hparams.test_views().count or 0
        x = x.unsqueeze(1).repeat_interleave(1 + views, dim=1)
    begin = time.perf_counter()
    method.predict(x).cpu()
    return (time.perf_counter() - begin) * n / some + n * open_image


def _random_support(features: Features, cell: LoadedCell) -> Support | None:
    if cell.support is None:
        return None
    images = cell.row.method.inputs == "images"
    device = features.backbone.device

    def labelled(split: str, rows: Any) -> Labelled:
        labels = torch.as_tensor(features.splits[split].labels[rows], dtype=torch.long)
        if images:
            # Enough for a batch; the rest only takes memory.
            labels = labels[torch.linspace(0, len(labels) - 1, min(IMAGES, len(labels))).long()]
        return Labelled(_inputs(features, len(labels), images, sum(cell.dims)), labels.to(device))

    train_set = labelled("train", cell.support.train)
    val = None if cell.support.val is None else labelled("val", cell.support.val)
    return Support(train_set.x, train_set.labels, cell.info.n_classes, cell.shots, val=val)


def _inputs(features: Features, n: int, images: bool, dim: int) -> Tensor:
    backbone = features.backbone
    shape = (3, backbone.image_size, backbone.image_size) if images else (dim,)
    made = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))
    return made.to(backbone.device)


def _pixels(features: Features, method: type[Method]) -> int:
    """Bytes of the test images of a method that takes images: they are all held at once."""
    if method.inputs != "images":
        return 0
    return len(features.splits["test"]) * 3 * features.backbone.image_size**2 * 4


def _peak(features: Features) -> int:
    if features.backbone.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(features.backbone.device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
