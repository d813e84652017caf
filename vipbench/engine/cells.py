"""Running cells: build, train (stacked where it can be), score, and write down what happened."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from vipbench.api import (
    Backbone,
    Method,
    Recipe,
    Support,
    Task,
    has_own_fit,
)
from vipbench.engine.features import Features
from vipbench.engine.guard import FrozenTexts, Guard, SpoiltError, own_randomness
from vipbench.engine.learned import Versions, learned, versions
from vipbench.engine.machine import Share, free_memory, threads
from vipbench.engine.planning import PlanCell
from vipbench.engine.records import base_record, error_record
from vipbench.engine.scoring import checked_scores
from vipbench.engine.seeding import cell_generator
from vipbench.engine.stacking import TrainCell, partition
from vipbench.engine.support import encode_views, image_batches, make_support, test_inputs
from vipbench.engine.training import train
from vipbench.results import Predictions, Record
from vipbench.results.metrics import compute_metrics

# At most so many cells at once: more gain little, and cost memory.
MOST_STACKED = 64
OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


@dataclass(frozen=True)
class Finished:
    """A cell's record, with its predictions where it has numbers, and what was learned, as a
    safetensors file, where that is small."""

    record: Record
    predictions: Predictions | None
    parameters: bytes | None = None


@dataclass
class _Ready:
    """A cell whose method is built and prepared."""

    cell: PlanCell
    method: Method
    recipe: Recipe | None
    support: Support | None
    generator: Callable[[str], torch.Generator]
    history: list[dict[str, float]]
    built: Versions
    stacked: int = 1


class GroupRunner:
    """Runs groups of cells of one backbone and dataset, sharing features and frozen texts."""

    def __init__(
        self, features: Features, note: Callable[[str], None], share: Share | None = None
    ) -> None:
        self.features = features
        self.note = note
        self.share = share or Share()
        self.texts = FrozenTexts()
        self.guard = Guard(features.backbone, self.texts)
        features.before_encoding = self.guard.check
        # Whether a method changed what other cells use: this process is then of no more use.
        self.spoilt = False

    def run(self, cells: Sequence[PlanCell]) -> Iterator[Finished]:
        """All cells of one group (same row, dataset and backbone); a failure is a record."""
        left = {cell.key: cell for cell in cells}
        self._set_up(cells[0])
        try:
            for start in range(0, len(cells), MOST_STACKED):
                for finished in self._run_some(cells[start : start + MOST_STACKED]):
                    del left[finished.record.key]
                    yield finished
        except SpoiltError as error:
            self.spoilt = True
            for cell in left.values():
                yield Finished(error_record(cell, error), None)

    def run_alone(self, cell: PlanCell) -> Finished:
        """One cell by itself; whatever it raises comes through."""
        self._set_up(cell)
        return self._execute([cell])[0]

    def _set_up(self, cell: PlanCell) -> None:
        backbone = self.features.backbone
        torch.set_num_threads(threads(backbone, self.share.workers))
        if isinstance(backbone, Backbone):
            backbone.memory_budget = free_memory(backbone.device) // (4 * self.share.on_device)
            if cell.protocol.precision == "bf16":
                backbone.training_precision = "bf16"

    def try_build(self, cell: PlanCell) -> Method:
        """A cell's method, not to be run for numbers; raises what its constructor raises."""
        with nullcontext() if cell.row.plugin.builtin else self.guard.restored():
            task = self._task(cell)
            with self._randomness(cell, task.generator, draws=True):
                method = cell.row.method(task, cell.hparams).to(task.device)
        for name, shape in method.noise().items():
            setattr(method, name, torch.zeros(shape, device=task.device))
        return method

    def _randomness(
        self, cell: PlanCell, generator: Callable[[str], torch.Generator], draws: bool = False
    ) -> AbstractContextManager[None]:
        seed = generator("global").initial_seed()
        return own_randomness(seed, _who(cell), self.features.backbone.device, draws)

    def _run_some(self, cells: Sequence[PlanCell]) -> Iterator[Finished]:
        reason = ""
        if len(cells) > 1:
            try:
                yield from self._execute(cells)
                return
            except OUT_OF_MEMORY:
                half = len(cells) // 2
                self.note(f"'{cells[0].row.label}': out of memory with {len(cells)} cells at once")
            except SpoiltError:
                raise
            except Exception as error:
                reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            if not reason:
                yield from self._run_some(cells[:half])
                yield from self._run_some(cells[half:])
                return
        failed = False
        for cell in cells:
            try:
                yield from self._execute_alone(cell)
            except SpoiltError:
                raise
            except Exception as error:
                failed = True
                yield Finished(error_record(cell, error), None)
        if reason and not failed:
            name = cells[0].row.label
            self.note(
                f"'{name}' could not train its cells together and trained one by one ({reason})"
            )

    def _execute_alone(self, cell: PlanCell) -> list[Finished]:
        try:
            return self._execute([cell])
        except OUT_OF_MEMORY:
            backbone = self.features.backbone
            if not isinstance(backbone, Backbone):
                raise
        # Same numbers: beyond its budget a pass only computes again what it did not keep.
        backbone.memory_budget //= 2
        again = dataclasses.replace(
            cell, notes=(*cell.notes, "out of memory; done again with half the memory budget")
        )
        return self._execute([again])

    def _execute(self, cells: Sequence[PlanCell]) -> list[Finished]:
        with self.guard.watch(_who(cells[0])):
            return self._watched(cells)

    def _watched(self, cells: Sequence[PlanCell]) -> list[Finished]:
        encode_views(self.features, cells)
        started = time.perf_counter()
        ready = [self._prepare(cell) for cell in cells]
        prepared = time.perf_counter()
        self._fit(ready)
        trained = time.perf_counter()
        seconds = dict.fromkeys(range(len(ready)), 0.0)
        parts: list[list[Tensor]] = [[] for _ in ready]
        for test in test_inputs(self.features, cells[0].row.method):
            for i, item in enumerate(ready):
                begin = time.perf_counter()
                parts[i].append(self._score(item, test))
                seconds[i] += time.perf_counter() - begin
        done = []
        for i, item in enumerate(ready):
            timing = {
                "prepare": (prepared - started) / len(ready),
                "train": (trained - prepared) / len(ready),
                "score": seconds[i],
            }
            done.append(self._finished(item, torch.cat(parts[i]), timing))
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
        with self._randomness(cell, task.generator, draws=True):
            return self._build(cell, task)

    def _build(self, cell: PlanCell, task: Task) -> _Ready:
        method = cell.row.method(task, cell.hparams).to(task.device)
        for name, shape in method.noise().items():
            # Before training, so that all stacked cells have the buffers.
            setattr(method, name, torch.zeros(shape, device=task.device))
        built = versions(method)
        recipe = cell.hparams.recipe(cell.info)
        support = make_support(self.features, cell, recipe)
        if support is not None:
            method.prepare(support)
        return _Ready(cell, method, recipe, support, method.task.generator, [], built)

    def _fit(self, ready: Sequence[_Ready]) -> None:
        method = type(ready[0].method)
        train_cells = []
        for item in ready:
            if item.support is None:
                continue
            if has_own_fit(method):
                with self._randomness(item.cell, item.generator):
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
                        take=image_batches(self.features, item.cell, item.recipe),
                    )
                )
        for part in partition(train_cells):
            first = next(item for item in ready if item.method is part[0].method)
            with self._randomness(first.cell, first.generator):
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
                with self._randomness(item.cell, item.generator):
                    item.method.finish(item.support)

    @torch.no_grad()
    def _score(self, item: _Ready, test: Tensor) -> Tensor:
        version = test._version
        with self._randomness(item.cell, item.generator):
            scores = item.method.predict(test)
        if test._version != version:
            raise ValueError(f"{_who(item.cell)} changed the test images' features in place")
        return checked_scores(scores, item.method.name, (len(test), item.cell.info.n_classes))

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
        parameters, told = learned(item.method, item.built)
        if told:
            record["provenance"]["parameters"] = told
        return Finished(Record.of(record), predictions, parameters)


def _who(cell: PlanCell) -> str:
    return f"method '{cell.row.method.name}'"
