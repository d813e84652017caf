"""Runs of several methods on the same support sets and test images, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vipbench.errors import unknown
from vipbench.results.records.cells import Cells, check_comparable
from vipbench.results.records.comparable import draw, spread
from vipbench.results.records.predictions import Predictions
from vipbench.results.records.record import Record
from vipbench.results.records.rerun_command import again_commands
from vipbench.results.stats.bootstrap import DRAWS, TestSet, replicates
from vipbench.results.stats.intervals import StatsError

Load = Callable[[str], Predictions | None]
Shots = int | str


@dataclass(frozen=True)
class Where:
    """A column of the comparison: `shots` images per class of a dataset, with a backbone."""

    dataset: str
    backbone: str
    shots: Shots

    def words(self) -> str:
        """`synthderm with tiny-clip at 4 shots`."""
        return f"{self.dataset} with {self.backbone} {shot_words(self.shots)}"


@dataclass(frozen=True)
class Joint:
    """k methods' numbers at one place. values: (k,R) over the R shared seeds; reps: (B,k,R) under
    resamples of the test images; predictions: one list of R a method. seeds: R, or (0,) where no
    method has seeds. seeded: k, whether a method has seeds of its own."""

    values: NDArray[np.float64]
    reps: NDArray[np.float64]
    tests: TestSet
    seeds: tuple[int, ...]
    records: tuple[tuple[Record, ...], ...]
    predictions: tuple[tuple[Predictions, ...], ...]

    @property
    def seeded(self) -> bool:
        """Whether seeds make a difference to any of the methods."""
        return self.seeds != (0,)


def shot_words(shots: Shots) -> str:
    """`at 4 shots`, `without training images`, `on the full training split`."""
    if shots == 0:
        return "without training images"
    if isinstance(shots, str):
        return "on the full training split"
    return f"at {shots} shot{'s' * (shots != 1)}"


def select(
    cells: Cells,
    *,
    datasets: Iterable[str] | None = None,
    backbones: Iterable[str] | None = None,
    methods: Iterable[str] | None = None,
    shots: Iterable[Shots] | None = None,
    seeds: Iterable[int] | None = None,
) -> Cells:
    """The cells with these values; None takes all. 0 shots stay whatever `shots` says, and
    what has no seed whatever `seeds` says. Raises UsageError for what no cell has."""
    asked: dict[str, Iterable[Any] | None] = {
        "dataset": datasets,
        "backbone": backbones,
        "method": methods,
        "shots": shots,
        "seed": seeds,
    }
    kept = list(cells.planned)
    for name, values in asked.items():
        if values is None:
            continue
        wanted = list(values)
        known = {str(getattr(cell, name)) for cell in cells.planned}
        for value in wanted:
            if str(value) not in known:
                raise unknown(name, str(value), known)
        kept = [
            c
            for c in kept
            if getattr(c, name) in wanted
            or (c.shots == 0 and (name == "shots" or (name == "seed" and c.seed == 0)))
        ]
    whole = all(values is None for values in asked.values())
    return replace(cells, planned=tuple(kept), left_out=cells.left_out if whole else ())


class Pairing:
    """The cells of one comparison, with the scores of every test image.

    Predictions are read once a record, and resampled once a record and metric. Every method raises
    StatsError, saying what to do, where runs are missing or cannot be paired.
    """

    def __init__(self, cells: Cells, load: Load, draws: int = DRAWS) -> None:
        self.cells, self.draws = cells, draws
        self._load = load
        self._predictions: dict[str, Predictions] = {}
        self._reps: dict[tuple[str, str], tuple[float, NDArray[np.float64]]] = {}
        self._tests: dict[str, TestSet] = {}

    def places(self, methods: Sequence[str]) -> list[Where]:
        """Where all of `methods` can have a number; a method without shots counts everywhere."""
        own: dict[str, dict[Where, None]] = {m: {} for m in methods}
        for cell in self.cells.possible():
            if cell.method in own:
                own[cell.method][Where(cell.dataset, cell.backbone, cell.shots)] = None
        every = dict.fromkeys(place for found in own.values() for place in found)
        if any(place.shots != 0 for place in every):
            every = {p: None for p in every if p.shots != 0}
        return [
            p
            for p in sorted(every, key=_order)
            if all(p in found or Where(p.dataset, p.backbone, 0) in found for found in own.values())
        ]

    def runs(self, method: str, place: Where) -> dict[int, Record]:
        """seed -> record, of every planned seed."""
        planned = [
            c
            for c in self.cells.possible()
            if (c.method, c.dataset, c.backbone) == (method, place.dataset, place.backbone)
        ]
        own = [c for c in planned if c.shots == place.shots] or [c for c in planned if c.shots == 0]
        found = {c.seed: r for c in own if (r := self.cells.record_of(c)) is not None and r.ok}
        if not own:
            raise StatsError(f"{method} was not run on {place.words()}")
        if len(found) < len(own):
            older = sum(c.key in self.cells.outdated for c in own)
            raise StatsError(
                f"{method} on {place.words()} has {len(found)} of its {len(own)} planned runs"
                + (f" ({older} made by older code count as not yet run)" if older else ""),
                self._rerun_words(method)
                if older
                else "run the same `vipbench run` again, or select the finished ones with --seeds",
            )
        return found

    def _rerun_words(self, method: str) -> str:
        """How to make a row's outdated records again."""
        asked = {c.key for c in self.cells.possible() if c.method == method}
        records = [r for key, r in self.cells.outdated.items() if key in asked]
        commands = again_commands(records, self.cells.folder)
        return f"run {' and '.join(f'`{command}`' for command in commands)}"

    def joint(self, methods: Sequence[str], place: Where, metric: str) -> Joint:
        """The methods' numbers on the seeds and test images that they share."""
        found = {m: self.runs(m, place) for m in methods}
        check_comparable(
            select(
                self.cells, datasets=[place.dataset], backbones=[place.backbone], methods=methods
            ),
            [metric],
        )
        seeded = {m: tuple(sorted(r)) for m, r in found.items() if not _without_shots(r)}
        sets = dict.fromkeys(seeded.values())
        if len(sets) > 1:
            listed = "; ".join(f"{m}: {', '.join(map(str, s))}" for m, s in seeded.items())
            common = sorted(set.intersection(*(set(s) for s in sets)))
            raise StatsError(
                f"on {place.words()} the methods were run with unequal seeds ({listed}), so that "
                f"they do not share all support sets; --seeds {','.join(map(str, common)) or '…'} "
                f"compares them on common ones"
            )
        seeds = next(iter(sets), (0,))
        records = tuple(
            tuple(r[0] if _without_shots(r) else r[s] for s in seeds) for r in found.values()
        )
        self._same_draw([row[0] for row in records if row[0].cell.shots != 0], place)
        shape = (len(methods), len(seeds))
        tests, values, reps = self._numbers([r for row in records for r in row], metric)
        predictions = tuple(tuple(self._predictions[r.key] for r in row) for row in records)
        return Joint(
            values.reshape(shape), reps.reshape(-1, *shape), tests, seeds, records, predictions
        )

    def _same_draw(self, records: Sequence[Record], place: Where) -> None:
        if found := spread((record.key, draw(record)) for record in records):
            draws = "; ".join(f"{name}: {' | '.join(values)}" for name, values in found.items())
            raise StatsError(
                f"on {place.words()} the methods' support sets were drawn differently ({draws}): "
                f"run them with the same --sampler and the same version of vipbench"
            )

    def _numbers(
        self, records: Sequence[Record], metric: str
    ) -> tuple[TestSet, NDArray[np.float64], NDArray[np.float64]]:
        values, reps = [], []
        tests = self._test_set(records)
        for record in records:
            known = self._reps.get((record.key, metric))
            if known is None:
                scores = self._predictions[record.key].scores
                value, rep = replicates(metric, tests, [scores], draws=self.draws)
                known = self._reps[record.key, metric] = (float(value[0]), rep[:, 0])
            values.append(known[0])
            reps.append(known[1])
        return tests, np.array(values), np.stack(reps, 1)

    def _test_set(self, records: Sequence[Record]) -> TestSet:
        first = self._predictions_of(records[0])
        for record in records[1:]:
            other = self._predictions_of(record)
            same = other is first or (
                other.ids == first.ids
                and other.groups == first.groups
                and np.array_equal(other.labels, first.labels)
            )
            if not same:
                raise StatsError(
                    f"the records {records[0].key[:12]}… and {record.key[:12]}… are of different "
                    f"test images: they cannot be compared image by image"
                )
        key = records[0].key
        if key not in self._tests:
            names = records[0].data.class_names
            self._tests[key] = TestSet.of(first.labels, first.groups, names)
        return self._tests[key]

    def _predictions_of(self, record: Record) -> Predictions:
        if record.key not in self._predictions:
            found = self._load(record.key)
            if found is None:
                raise StatsError(
                    f"the record {record.key[:12]}… has no scores of its test images: run that "
                    f"cell again"
                )
            self._predictions[record.key] = found
        return self._predictions[record.key]


def _order(place: Where) -> tuple[str, str, float]:
    shots = float("inf") if isinstance(place.shots, str) else place.shots
    return place.dataset, place.backbone, shots


def _without_shots(runs: Mapping[int, Record]) -> bool:
    return next(iter(runs.values())).cell.shots == 0 and set(runs) == {0}
