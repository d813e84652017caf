"""Running cells: build, train (stacked where it can be), score, and write down what happened."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vipbench.api import (
    Backbone,
    Labelled,
    Method,
    Recipe,
    Split,
    Support,
    Task,
    has_own_fit,
)
from vipbench.engine.features import Features
from vipbench.engine.machine import free_memory, threads
from vipbench.engine.optim import steps_per_epoch
from vipbench.engine.planning import PlanCell
from vipbench.engine.records import base_record, error_record
from vipbench.engine.seeding import cell_generator
from vipbench.engine.stacking import TrainCell, partition
from vipbench.engine.training import train
from vipbench.results import Predictions, Record
from vipbench.results.metrics import compute_metrics

# At most so many cells at once: more gain little, and cost memory.
MOST_STACKED = 32


@dataclass(frozen=True)
class Finished:
    """A cell's record, with its predictions where it has numbers."""

    record: Record
    predictions: Predictions | None


@dataclass
class _Ready:
    """A cell whose method is built and prepared."""

    cell: PlanCell
    method: Method
    recipe: Recipe | None
    support: Support | None
    generator: Callable[[str], torch.Generator]
    history: list[dict[str, float]]
    stacked: int = 1


class GroupRunner:
    """Runs groups of cells of one backbone and dataset, sharing features and frozen texts."""

    def __init__(self, features: Features, note: Callable[[str], None]) -> None:
        self.features = features
        self.note = note
        self.texts: dict[Any, Tensor] = {}

    def run(self, cells: Sequence[PlanCell]) -> Iterator[Finished]:
        """All cells of one group (same row, dataset and backbone); a failure is a record."""
        backbone = self.features.backbone
        torch.set_numthreads(threads(backbone))
        if isinstance(backbone, Backbone) and cells[0].protocol.precision == "bf16":
            backbone.training_precision = "bf16"
        self._encode_views(cells)
        at_once = self._at_once(cells[0])
        for start in range(0, len(cells), at_once):
            yield from self._run_some(cells[start : start + at_once])

    def try_build(self, cell: PlanCell) -> None:
        """Build a cell's method and throw it away; raises what its constructor raises."""
        cell.row.method(self._task(cell), cell.hparams)

    def _run_some(self, cells: Sequence[PlanCell]) -> Iterator[Finished]:
        if len(cells) > 1:
            try:
                yield from self._execute(cells)
                return
            except Exception as error:
                reason = (
                    f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                )
        failed = False
        for cell in cells:
            try:
                yield from self._execute([cell])
            except Exception as error:
                failed = True
                yield Finished(error_record(cell, error), None)
        if len(cells) > 1 and not failed:
            name = cells[0].row.label
            self.note(
                f"'{name}' could not train its cells together and trained one by one ({reason})"
            )

    def _execute(self, cells: Sequence[PlanCell]) -> list[Finished]:
        started = time.perf_counter()
        ready = [self._prepare(cell) for cell in cells]
        prepared = time.perf_counter()
        self._fit(ready)
        trained = time.perf_counter()
        test = self._test_inputs(cells[0].row.method)
        done = []
        for item in ready:
            begin = time.perf_counter()
            scores = self._score(item, test)
            seconds = {
                "prepare": (prepared - started) / len(ready),
                "train": (trained - prepared) / len(ready),
                "score": time.perf_counter() - begin,
            }
            done.append(self._finished(item, scores, seconds))
        return done

    def _task(self, cell: PlanCell) -> Task:
        data = cell.data
        return Task(
            image_backbone=self.features.backbone,
            class_names=data.dataset.class_names,
            templates=data.dataset.templates,
            symptoms=data.symptoms,
            descriptions=data.descriptions,
            info=cell.info,
            generator=cell_generator(data.fingerprint, cell.shots, cell.seed),
            _frozen=self.texts,
        )

    def _prepare(self, cell: PlanCell) -> _Ready:
        task = self._task(cell)
        method = cell.row.method(task, cell.hparams).to(task.device)
        for name, shape in method.noise().items():
            # Before training, so that all stacked cells have the buffers.
            setattr(method, name, torch.zeros(shape, device=task.device))
        recipe = cell.hparams.recipe(cell.info)
        support = self._support(cell, recipe)
        if support is not None:
            method.prepare(support)
        return _Ready(cell, method, recipe, support, task.generator, [])

    def _fit(self, ready: Sequence[_Ready]) -> None:
        method = type(ready[0].method)
        train_cells = []
        for item in ready:
            if item.support is None:
                continue
            if has_own_fit(method):
                item.method.fit(item.support)
            elif item.recipe is not None and item.recipe.epochs != 0:
                best_val = item.cell.protocol.selection == "best_val"
                train_cells.append(
                    TrainCell(
                        item.method,
                        item.recipe,
                        item.support,
                        item.generator,
                        best_val,
                        item.history,
                    )
                )
        for part in partition(train_cells):
            train(part, self.features.progress)
            for item in ready:
                if any(cell.method is item.method for cell in part):
                    item.stacked = len(part)
        for item in ready:
            item.method.eval()
            for name, shape in item.method.noise().items():
                value = torch.randn(*shape, generator=item.generator(f"noise-eval/{name}"))
                setattr(item.method, name, value.to(self.features.backbone.device))
            if item.support is not None:
                item.method.finish(item.support)

    @torch.no_grad()
    def _score(self, item: _Ready, test: Tensor) -> Tensor:
        scores = item.method.predict(test)
        expected = (len(test), item.cell.info.n_classes)
        if not isinstance(scores, Tensor) or tuple(scores.shape) != expected:
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(
                f"method '{item.method.name}' gave scores of shape {got}; expected {expected} "
                "(test images, classes)"
            )
        if not scores.is_floating_point():
            raise ValueError(f"method '{item.method.name}' gave scores of type {scores.dtype}")
        if not bool(torch.isfinite(scores).all()):
            raise ValueError(
                f"method '{item.method.name}' gave scores that are not finite numbers (NaN or inf)"
            )
        return scores.float().cpu()

    # Support sets and views.

    def _views(self, cell: PlanCell, recipe: Recipe | None) -> int:
        """How many training views this cell uses."""
        if recipe is None or cell.protocol.views == "none" or recipe.views.count == 0:
            return 0
        if isinstance(cell.protocol.views, int):
            return cell.protocol.views
        if recipe.views.count is not None:
            return recipe.views.count
        if recipe.epochs is not None:
            return recipe.epochs
        assert recipe.iterations is not None
        return math.ceil(recipe.iterations / steps_per_epoch(recipe, cell.info.n_support))

    def _encode_views(self, cells: Sequence[PlanCell]) -> None:
        if cells[0].row.method.inputs != "features":
            return
        for cell in cells:
            recipe = cell.hparams.recipe(cell.info) if cell.support is not None else None
            count = self._views(cell, recipe)
            if count and recipe is not None and cell.support is not None:
                self.features.prepare_views(
                    "train", cell.support.train.tolist(), recipe.views, cell.seed, count
                )

    def _support(self, cell: PlanCell, recipe: Recipe | None) -> Support | None:
        if cell.support is None:
            return None
        train_split, rows = cell.data.splits["train"], cell.support.train.tolist()
        device = self.features.backbone.device
        images = cell.row.method.inputs == "images"
        count = self._views(cell, recipe)

        @lru_cache(maxsize=1)
        def view(v: int) -> Tensor:
            assert recipe is not None
            if images:
                items = [(i, v) for i in rows]
                return self.features.images("train", items, (recipe.views, cell.seed))
            return self.features.view("train", rows, recipe.views, cell.seed, v)

        val = None
        if cell.support.val is not None:
            picked = cell.support.val.tolist()
            val = Labelled(
                self._inputs("val", picked, images),
                _labels(cell.data.splits["val"], picked).to(device),
            )
        groups = train_split.groups
        return Support(
            plain=self._inputs("train", rows, images),
            labels=_labels(train_split, rows).to(device),
            n_classes=cell.info.n_classes,
            shots=cell.shots,
            get_view=view if count else None,
            n_views=count,
            groups=None if groups is None else tuple(groups[i] for i in rows),
            val=val,
            best_val=val is not None and cell.protocol.selection == "best_val",
        )

    def _inputs(self, split: str, rows: Sequence[int], images: bool) -> Tensor:
        if images:
            return self.features.images(split, [(i, 0) for i in rows], None)
        return self.features.plain(split, rows)

    def _test_inputs(self, method: type[Method]) -> Tensor:
        rows = range(len(self.features.splits["test"]))
        return self._inputs("test", list(rows), method.inputs == "images")

    def _at_once(self, cell: PlanCell) -> int:
        """How many cells to hold at once, by a rough count of the text pass's activations."""
        backbone, data = self.features.backbone, cell.data
        layers = getattr(backbone, "text_layers", 0)
        texts = cell.info.n_classes
        if "symptoms" in cell.row.method.needs and data.symptoms is not None:
            texts = sum(len(row) for row in data.symptoms)
        # Forty tokens a text, about twenty fp32 numbers of the tower's width a token and layer.
        per_cell = max(1, texts * 40 * layers * cell.info.width * 20 * 4)
        return max(1, min(MOST_STACKED, int(0.25 * free_memory(backbone.device)) // per_cell))

    def _finished(self, item: _Ready, scores: Tensor, timing: Mapping[str, float]) -> Finished:
        test = item.cell.data.splits["test"]
        predictions = Predictions(
            ids=list(test.ids),
            groups=None if test.groups is None else list(test.groups),
            labels=test.labels,
            scores=scores.numpy(),
        )
        names = item.cell.data.dataset.class_names
        metrics = compute_metrics(test.labels, scores.numpy(), list(names))
        record = base_record(item.cell) | {
            "status": "ok",
            "metrics": metrics,
            "timing": {name: round(value, 4) for name, value in timing.items()},
            "history": item.history,
        }
        record["provenance"]["stacked_cells"] = item.stacked
        return Finished(Record.of(record), predictions)


def _labels(split: Split, rows: Sequence[int]) -> Tensor:
    return torch.as_tensor(split.labels[list(rows)], dtype=torch.long)
