"""Scoring trained cells on their test images, and the finished records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vipbench.api import Method, Recipe, Support, has_own_fit
from vipbench.engine.evaluation.learned import Versions, learned
from vipbench.engine.evaluation.rebind import best_of
from vipbench.engine.evaluation.records import base_record
from vipbench.engine.planning.cells import LoadedCell
from vipbench.engine.planning.protocols import test_split
from vipbench.results import Predictions, Record
from vipbench.results.records.metrics import compute_metrics


class ScoreError(ValueError):
    """The result of a method's `predict`, or what it did to its input, is refused. rule: which of
    the rules of `vipbench.testing` that breaks."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule


@dataclass(frozen=True)
class Finished:
    """A cell's record, with its predictions where it has numbers, and what was learned, as a
    safetensors file, where that is small."""

    record: Record
    predictions: Predictions | None
    parameters: bytes | None = None


@dataclass
class Ready:
    """A cell whose method is built and prepared."""

    cell: LoadedCell
    method: Method
    recipe: Recipe | None
    support: Support | None
    generator: Callable[[str], torch.Generator]
    history: list[dict[str, float]]
    built: Versions
    stacked: int = 1
    # Seconds to encode its images, to prepare and to train it.
    encode: float = 0.0
    prepare: float = 0.0
    train: float = 0.0

    @property
    def trained(self) -> bool:
        """Whether the engine trains it."""
        runs = self.recipe is not None and self.recipe.epochs != 0
        return self.support is not None and runs and not has_own_fit(type(self.method))


@dataclass
class Test:
    """One cell to score with what was trained. method: bound to the classes that are tested."""

    cell: LoadedCell
    item: Ready
    method: Method
    scores: list[Tensor] = field(default_factory=list)
    # Seconds to encode its test images, and to score them.
    encode: float = 0.0
    seconds: float = 0.0


def trainings(cells: Sequence[LoadedCell]) -> list[list[LoadedCell]]:
    """The cells of one group by what they are trained on: the same images of the same data. Each
    list is one training, tested on several parts."""
    found: dict[tuple[int | None, int], list[LoadedCell]] = {}
    for cell in cells:
        found.setdefault((cell.shots, cell.seed), []).append(cell)
    return list(found.values())


def finished(test: Test, shared: int, short: str | None = None) -> Finished:
    """The record of a scored cell. shared: how many cells were scored with its training. short:
    what it took to fit it into the memory."""
    cell, item = test.cell, test.item
    scores = torch.cat(test.scores)
    if cell.part is not None and cell.part.columns is not None:
        scores = best_of(scores, cell.part.columns)
    images = test_split(cell.tested)
    predictions = Predictions(
        ids=list(images.ids),
        groups=None if images.groups is None else list(images.groups),
        labels=images.labels,
        scores=scores.numpy(),
    )
    names = cell.tested.dataset.class_names
    timing = {
        "encode": item.encode + test.encode,
        "prepare": item.prepare,
        "train": item.train,
        "score": test.seconds,
    }
    record = base_record(cell) | {
        "status": "ok",
        "metrics": compute_metrics(images.labels, scores.numpy(), list(names)),
        "timing": {name: round(value, 4) for name, value in timing.items()},
        "history": item.history,
    }
    record["provenance"]["stacked_cells"] = item.stacked
    if short:
        record["provenance"]["out_of_memory"] = short
    if shared > 1:
        record["provenance"]["cells_of_training"] = shared
    # What was learned is kept once, beside the cell of its own classes.
    parameters, description = learned(item.method, item.built) if cell.part is None else (None, {})
    if description:
        record["provenance"]["parameters"] = description
    return Finished(Record.of(record), predictions, parameters)


def checked_scores(scores: object, name: str, expected: tuple[int, int]) -> Tensor:
    """A copy of `scores` as float32 (N,C) on the CPU. Raises ScoreError, naming the method, for
    another shape than `expected`, integers, NaN and infinite values."""
    if not isinstance(scores, Tensor) or tuple(scores.shape) != expected:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        message = f"method '{name}' gave scores of shape {got}; expected {expected}"
        raise ScoreError("shapes", f"{message} (test images, classes)")
    if not scores.is_floating_point():
        message = f"method '{name}' gave scores of type {scores.dtype}; expected floating point"
        raise ScoreError("shapes", message)
    if not bool(torch.isfinite(scores).all()):
        message = f"method '{name}' gave scores that are not finite numbers (NaN or inf)"
        raise ScoreError("finite", message)
    # A method may give the same buffer for every batch and cell.
    return scores.float().cpu().clone()
