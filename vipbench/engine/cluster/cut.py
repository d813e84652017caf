"""A RunSpec cut into smaller ones, whose cells and keys are those of the whole.

The RunSpec is cut, not the plan, which would need data and weights: first by backbone and dataset,
then by method, then by seeds. Shots are never cut: cells of one group train together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import TypeVar

from vipbench.runspec.run import PATHS_BY_DATASET, RunSpec
from vipbench.runspec.text_sets import split_key
from vipbench.runspec.values import dataset_keys

T = TypeVar("T")

# What a part lasts at least, where nobody says how many there are to be: a job takes some seconds
# to start.
LEAST_SECONDS = 600.0
# More would fill the folder of the parts, which all machines list.
MOST_PARTS = 900
# What a cell takes, where no earlier result tells.
SECONDS = 20.0


@dataclass(frozen=True)
class Piece:
    """A RunSpec of a cut. without_support: whether cells without a support set, which are the same
    for all seeds, belong to it."""

    spec: RunSpec
    without_support: bool

    @property
    def cells(self) -> int:
        """How many cells it has at most."""
        return count(self.spec)


def count(spec: RunSpec) -> int:
    """How many cells `spec` asks for at most; fewer where methods see no support set."""
    axes = (spec.backbones, spec.datasets, spec.methods, spec.shots, spec.seeds)
    return prod(map(len, axes))


def pairs(spec: RunSpec) -> list[RunSpec]:
    """Of each backbone and dataset what runs on them: what can be encoded ahead."""
    return [
        _of(spec, (backbone,), datasets)
        for backbone in spec.backbones
        for datasets, _ in _datasets(spec, len(spec.datasets))
    ]


def fitting(spec: RunSpec, seconds: float = SECONDS) -> int:
    """The number of parts of about LEAST_SECONDS. seconds: what a cell takes."""
    return max(1, int(count(spec) * seconds // LEAST_SECONDS))


def cut(spec: RunSpec, jobs: int) -> list[Piece]:
    """At most `jobs` pieces, as many of them as there can be, in the order of the grid."""
    return [
        piece
        for backbones, for_these in _shared(spec.backbones, jobs)
        for datasets, some in _datasets(spec, for_these)
        for piece in _cut_methods(_of(spec, backbones, datasets), some)
    ]


def _datasets(spec: RunSpec, jobs: int) -> list[tuple[tuple[str, ...], int]]:
    if spec.protocol.transfers:
        # What is trained on one dataset and tested on others needs all of them.
        return [(spec.datasets, jobs)]
    return _shared(spec.datasets, jobs)


def _of(spec: RunSpec, backbones: tuple[str, ...], datasets: tuple[str, ...]) -> RunSpec:
    known = dataset_keys(datasets)
    paths = {
        key: {k: file for k, file in getattr(spec, key).items() if split_key(k)[1] in known}
        for key in PATHS_BY_DATASET
    }
    return spec.model_copy(update={"backbones": backbones, "datasets": datasets, **paths})


def _cut_methods(spec: RunSpec, jobs: int) -> list[Piece]:
    pieces = []
    for methods, some in _shared(spec.methods, jobs):
        chunks = [spec.seeds] if len(methods) > 1 else [c for c, _ in _shared(spec.seeds, some)]
        # Seed 0 is also the one that cells without a support set have in their keys.
        first = next((chunk for chunk in chunks if 0 in chunk), chunks[0])
        pieces += [
            Piece(spec.model_copy(update={"methods": methods, "seeds": chunk}), chunk is first)
            for chunk in chunks
        ]
    return pieces


def _shared(values: Sequence[T], jobs: int) -> list[tuple[tuple[T, ...], int]]:
    """`values` in as many runs of neighbours as `jobs` allows, and how many jobs each has."""
    runs = max(1, min(len(values), jobs))
    return [
        (tuple(values[a:b]), jobs // runs + (number < jobs % runs))
        for number, (a, b) in enumerate(_ends(len(values), runs))
    ]


def _ends(length: int, runs: int) -> list[tuple[int, int]]:
    size, more = divmod(length, runs)
    starts = [i * size + min(i, more) for i in range(runs + 1)]
    return list(pairwise(starts))
