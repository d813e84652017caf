"""Comparisons of one method with others, corrected together.

What is compared, and over which population, is documented in docs/statistics.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from vipbench.errors import UsageError, unknown
from vipbench.results import stats
from vipbench.results.records.cells import Cells, check_classes
from vipbench.results.records.comparable import TableError, protocol, spread, versions
from vipbench.results.stats import LEVEL, Interval, StatsError
from vipbench.results.stats.pairing import Joint, Load, Pairing, Where, select
from vipbench.results.tables.differences import (
    by_value,
    older_words,
    outdated_words,
    shared_words,
)

# How a note begins that may question a claim.
WARNING = "Warning: "
POPULATIONS = ("both", "images", "seeds", "average", "datasets", "datasets-bootstrap")
_OVER_DATASETS = ("average", "datasets", "datasets-bootstrap")


@dataclass(frozen=True)
class Pair:
    """One seed's two models on the same images: how many each alone has right, and McNemar's mid-p
    value, None where the images are too few or are grouped."""

    seed: int
    only_a: int
    only_b: int
    p: float | None


@dataclass(frozen=True)
class Claim:
    """A minus B in one metric; all fractions. p_corrected: after Holm over the family.

    datasets: one, or those that were averaged or tested over. interval: of the mean difference.
    test: what gave `p`. mean_a, mean_b: over seeds, and datasets. n_images: test images.
    untrained: those of the two that saw no support set.
    """

    a: str
    b: str
    metric: str
    datasets: tuple[str, ...]
    backbone: str
    shots: int | str
    mean_a: float
    mean_b: float
    interval: Interval
    test: str
    p: float
    seeds: tuple[int, ...]
    n_images: int
    grouped: bool
    p_corrected: float = 1.0
    pairs: tuple[Pair, ...] = ()
    untrained: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claims:
    """The comparisons of one family, and those that could not be made, with the reason."""

    claims: tuple[Claim, ...]
    refused: tuple[str, ...]
    notes: tuple[str, ...]
    level: float = LEVEL

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; numbers are fractions, not rounded."""
        return {"schema": 1, "unit": "fraction", "family": len(self.claims)} | asdict(self)


def compare(
    cells: Cells,
    load: Load,
    a: str,
    others: Sequence[str],
    *,
    metrics: Sequence[str] = ("accuracy",),
    population: str = "both",
    level: float = LEVEL,
) -> Claims:
    """Method `a` against each of `others`, at every place where they meet.

    cells: what may be compared (see `pairing.select`). load: a record's predictions by its key
    (`Store.predictions`). others: labels, or none for every other one. population: of POPULATIONS;
    "average" is the mean over these very datasets for new support sets and test images.
    Where neither method has seeds, "both" and "seeds" are no question and "images" is asked.
    Raises UsageError for unknown names, and StatsError where no comparison at all can be made.
    """
    if population not in POPULATIONS:
        raise unknown("population", population, POPULATIONS)
    if not 0.5 <= level < 1:
        raise UsageError(
            f"expected a confidence level from 0.5 to below 1, such as 0.95, got {level}"
        )
    check_classes(cells, metrics)
    known = list(dict.fromkeys(cell.method for cell in cells.planned))
    for name in (a, *others):
        if name not in known:
            raise unknown("method", name, known, "Labels are those of `vipbench table`.")
    others = list(others) or [name for name in known if name != a]
    if a in others or not others:
        raise UsageError(f"'{a}' can be compared with other methods only; expected some of {known}")
    maker = _Maker(Pairing(cells, load), population, level)
    asked = [(b, metric) for b in others for metric in metrics]
    maker.family = sum(len(maker.groups(a, b)) for b, _ in asked)
    for b, metric in asked:
        maker.compare(a, b, metric)
    if not maker.claims:
        reasons = (
            "; ".join(dict.fromkeys(maker.refused))
            or "the methods have no dataset, backbone and shots in common"
        )
        raise StatsError(f"nothing can be compared: {reasons}", "; ".join(maker.todo))
    corrected = stats.holm([claim.p for claim in maker.claims])
    claims = [
        replace(claim, p_corrected=p) for claim, p in zip(maker.claims, corrected, strict=True)
    ]
    notes = _notes(select(cells, methods=[a, *others]))
    notes += [f"To compare the rest, {todo}." for todo in maker.todo]
    return Claims(tuple(claims), tuple(dict.fromkeys(maker.refused)), tuple(notes), level)


class _Maker:
    def __init__(self, pairing: Pairing, population: str, level: float) -> None:
        self.pairing, self.population, self.level = pairing, population, level
        self.claims: list[Claim] = []
        self.refused: list[str] = []
        self.todo: dict[str, None] = {}
        self.family = 1

    def groups(self, a: str, b: str) -> list[list[Where]]:
        """The places of each comparison of `a` and `b`: one, or those of several datasets."""
        places = self.pairing.places([a, b])
        if self.population not in _OVER_DATASETS:
            return [[place] for place in places]
        found: dict[tuple[str, Any], list[Where]] = {}
        for place in places:
            found.setdefault((place.backbone, place.shots), []).append(place)
        return list(found.values())

    def compare(self, a: str, b: str, metric: str) -> None:
        """Add the claims on `a` and `b`, or why there is none."""
        groups = self.groups(a, b)
        if not groups:
            self.refused.append(f"{a} and {b} have no dataset, backbone and shots in common")
        for group in groups:
            self._add_claim(a, b, metric, group)

    def _add_claim(self, a: str, b: str, metric: str, places: Sequence[Where]) -> None:
        where = places[0].words()
        if self.population in _OVER_DATASETS:
            where = f"over datasets with {places[0].backbone}, shots {places[0].shots}"
        try:
            joints = [self.pairing.joint([a, b], place, metric) for place in places]
            self.claims.append(self._claim(a, b, metric, places, joints))
        except (StatsError, TableError) as error:
            reason = error.reason if isinstance(error, StatsError) else str(error)
            self.refused.append(f"{a} against {b}, {where}: {reason}")
            if todo := getattr(error, "todo", ""):
                self.todo[todo] = None

    def _claim(
        self, a: str, b: str, metric: str, places: Sequence[Where], joints: Sequence[Joint]
    ) -> Claim:
        first = joints[0]
        pairs: tuple[Pair, ...] = ()
        if self.population in _OVER_DATASETS:
            interval, test = self._over_datasets(joints)
        else:
            if metric == "accuracy":
                pairs = tuple(_mcnemar(first, r) for r in range(len(first.seeds)))
            interval, test = self._interval_on_dataset(first)
        p = interval.p
        if interval.population == "images" and len(pairs) == 1 and not first.tests.grouped:
            if pairs[0].p is None:
                raise StatsError(
                    f"the two differ on {pairs[0].only_a + pairs[0].only_b} test images: McNemar's "
                    f"test needs at least 5"
                )
            p, test = pairs[0].p, "McNemar's mid-p test"
        means = np.mean([j.values.mean(1) for j in joints], 0)
        shots = {name: row[0].cell.shots for name, row in zip((a, b), first.records, strict=True)}
        return Claim(
            a, b, metric, tuple(p.dataset for p in places), places[0].backbone, places[0].shots,
            float(means[0]), float(means[1]), interval, test, p, first.seeds,
            sum(len(j.tests.labels) for j in joints), first.tests.grouped, pairs=pairs,
            untrained=tuple(name for name, k in shots.items() if k == 0),
        )  # fmt: skip

    def _interval_on_dataset(self, joint: Joint) -> tuple[Interval, str]:
        difference = joint.values[0] - joint.values[1]
        reps = joint.reps[:, 0] - joint.reps[:, 1]
        groups = joint.tests.n_groups
        if np.isnan(difference).any():
            raise StatsError("the metric is undefined on these test images")
        if self.population == "images" or not joint.seeded:
            found = stats.images_interval(difference, reps, groups, self.level)
            return found, "paired bootstrap over test images"
        if self.population == "seeds":
            return stats.seeds_interval(difference, groups, self.level), "paired t test over seeds"
        try:
            found = stats.both_interval(difference, reps, groups, self.level)
        except StatsError as error:
            if len(joint.seeds) >= 3:
                raise
            raise StatsError(
                f"{error}; --population images compares these trained models alone"
            ) from None
        return found, "paired t test over seeds and test images"

    def _over_datasets(self, joints: Sequence[Joint]) -> tuple[Interval, str]:
        differences = [j.values[0] - j.values[1] for j in joints]
        if self.population == "average":
            parts = [
                stats.both_variance(d, j.reps[:, 0] - j.reps[:, 1], j.tests.n_groups)
                for d, j in zip(differences, joints, strict=True)
            ]
            if len(parts) < 2:
                raise StatsError("--population average needs at least 2 datasets, got 1")
            return stats.pooled(parts, self.level), "paired t test over seeds and test images"
        means = np.array([d.mean() for d in differences])
        if self.population == "datasets":
            return stats.wilcoxon(means, self.family, self.level), "Wilcoxon's signed-rank test"
        return stats.datasets_bootstrap(means, self.level), "hierarchical bootstrap over datasets"


def _mcnemar(joint: Joint, r: int) -> Pair:
    right = [joint.predictions[m][r].scores.argmax(1) == joint.tests.labels for m in (0, 1)]
    only = [int(np.sum(right[0] & ~right[1])), int(np.sum(right[1] & ~right[0]))]
    p = None
    if not joint.tests.grouped:
        try:
            p = stats.mcnemar(right[0], right[1])[2]
        except StatsError:
            p = None
    return Pair(joint.seeds[r], only[0], only[1], p)


def _notes(cells: Cells) -> list[str]:
    done = cells.done()
    notes = [f"{sentence}." for sentence in (*older_words(cells, ""), *outdated_words(cells))]
    notes += [f"{sentence}." for sentence in shared_words(cells)]
    for name, values in spread((cell.method, protocol(record)) for cell, record in done).items():
        differing = "; ".join(f"{value} ({', '.join(who)})" for value, who in values.items())
        notes.append(f"The methods differ in {name}: {differing}.")
    for name, values in spread((cell.method, versions(record)) for cell, record in done).items():
        if name == "device":
            notes.append(
                f"{WARNING}the records are of different devices: {by_value(values)}. Devices round "
                "differently; run the methods on one model to rule that out."
            )
        else:
            notes.append(f"Records differ in {name}: {' and '.join(values)}.")
    for apart, predicate in (
        ("transductive", "sees all test images at once (transductive)"),
        ("views", "scores several views of each test image"),
    ):
        if seen := {cell.method for cell, record in done if record.apart == apart}:
            notes.append(f"{' and '.join(sorted(seen))} {predicate}.")
    saw = {cell.method: n for cell, r in done if (n := r.texts_saw_more) is not None}
    for method, n in saw.items():
        notes.append(
            f"{method}: its texts were written from {n} labelled training images of each class, "
            f"more than its shots: the methods did not see the same images."
        )
    return notes
