"""Means with their intervals, and the ranks that entries share by paired tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vipbench.results.records.comparable import draw, spread
from vipbench.results.records.metrics import METRICS
from vipbench.results.records.predictions import Predictions
from vipbench.results.records.record import Record
from vipbench.results.stats.bootstrap import TestSet, replicates
from vipbench.results.stats.intervals import LEVEL, StatsError, images_interval
from vipbench.results.tables.significance import better


@dataclass(frozen=True)
class Bounds:
    """A mean over seeds with its 95 % interval; all fractions.

    sd: sample standard deviation over seeds (n - 1), None for one seed. low, high: None where
    nothing tells. of: what the interval is for, "seeds" or "images" (see intervals.POPULATIONS).
    """

    mean: float
    n: int
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    of: str = ""


def bounds(values: NDArray[np.floating[Any]]) -> Bounds:
    """Mean, deviation and t interval of R numbers (R,), one a seed: `intervals.seeds_interval`,
    without its bookkeeping, which ten thousand records would wait for. Equal numbers give no
    interval: that of width 0 would beat everybody."""
    n, mean = len(values), float(values.mean())
    if n < 2:
        return Bounds(mean, n)
    sd = float(values.std(ddof=1))
    if np.ptp(values) == 0:
        return Bounds(mean, n, 0.0)
    half = _t_quantile(n - 1) * sd / math.sqrt(n)
    return Bounds(mean, n, sd, mean - half, mean + half, "seeds")


@lru_cache
def _t_quantile(df: int) -> float:
    from scipy import stats

    return float(stats.t.ppf((1 + LEVEL) / 2, df))


def image_bounds(
    predictions: Predictions, class_names: Sequence[str], metrics: Iterable[str]
) -> dict[str, Bounds]:
    """metric -> the bounds of a single run, from resampling its test images (by group). Metrics
    whose interval the test set cannot carry are left out."""
    tests = TestSet.of(predictions.labels, predictions.groups, list(class_names))
    found = {}
    for metric in metrics:
        try:
            values, reps = replicates(metric, tests, [predictions.scores], draws=1000)
            interval = images_interval(values, reps, tests.n_groups)
        except StatsError:
            continue
        found[metric] = Bounds(interval.estimate, 1, None, interval.low, interval.high, "images")
    return found


def ranks(entries: Sequence[Bounds], higher_better: bool = True) -> list[int | None]:
    """Of each entry: 1 + how many are significantly better, that is, have an interval wholly on
    the better side of its own; but never before an entry with a better mean, however wide its own
    interval. None for an entry without an interval, which tells no difference."""
    sign = 1.0 if higher_better else -1.0
    able = [i for i, e in enumerate(entries) if e.low is not None and e.high is not None]
    # On a scale where more is better.
    means = np.array([sign * entries[i].mean for i in able])
    ends = np.array([[entries[i].low, entries[i].high] for i in able], dtype=float).reshape(-1, 2)
    low, high = np.sort(sign * ends, axis=1).T
    # How many lower ends lie above an upper end; an entry's own never does.
    places = 1 + len(able) - np.searchsorted(np.sort(low), high, side="right")
    found: list[int | None] = [None] * len(entries)
    for i, place in zip(able, in_order_of_means(means, places), strict=True):
        found[i] = int(place)
    return found


def in_order_of_means(
    means: NDArray[np.floating[Any]], places: NDArray[np.integer[Any]]
) -> NDArray[np.integer[Any]]:
    """The places, each at least as late as those of better means; equal means share theirs."""
    order = np.lexsort((places, -means))
    late = np.maximum.accumulate(places[order])
    # Of equal means the last one's place is everybody's.
    last = np.searchsorted(-means[order], -means[order], side="right") - 1
    out = np.empty_like(places)
    out[order] = late[last]
    return out


DRAWS = 1000


@dataclass(frozen=True)
class Stack:
    """Scores of M entries on the same N test images on the same R support sets: scores[m][r] is
    (N,C)."""

    tests: TestSet
    scores: Sequence[Sequence[NDArray[np.floating]]]
    seeded: bool


def stacked(
    entries: Sequence[Sequence[Record]], load: Callable[[str], Predictions | None]
) -> Stack | None:
    """The entries' predictions side by side, or None where they cannot be paired: some are not
    kept, the images or seeds differ, or the support sets were drawn in another way.

    entries: of each its records, one a seed, in the order of the seeds.
    """
    if len({tuple(r.cell.seed for r in records) for records in entries}) != 1:
        return None
    if spread((records[0].key, draw(records[0])) for records in entries):
        return None
    found: list[list[Predictions]] = []
    for records in entries:
        mine = [p for record in records if (p := load(record.key)) is not None]
        if len(mine) < len(records):
            return None
        found.append(mine)
    first = found[0][0]
    for one in (p for mine in found for p in mine):
        same = one.ids == first.ids and one.groups == first.groups
        if not (same and np.array_equal(one.labels, first.labels)):
            return None
    tests = TestSet.of(first.labels, first.groups, list(entries[0][0].data.class_names))
    seeded = any(r.cell.shots != 0 or r.cell.seed != 0 for r in entries[0])
    return Stack(tests, [[p.scores for p in mine] for mine in found], seeded)


def paired_ranks(stack: Stack, metrics: Iterable[str]) -> dict[str, list[int]]:
    """metric -> the rank of each entry: 1 + how many are significantly better, in paired tests over
    seeds and test images (over test images where nothing has seeds) with Holm's correction over
    all pairs, but never before an entry with a better mean. Metrics that the test set or the number
    of seeds cannot carry are left out."""
    entries, seeds = len(stack.scores), len(stack.scores[0])
    flat = [scores for mine in stack.scores for scores in mine]
    found = {}
    for name in metrics:
        values, reps = replicates(name, stack.tests, flat, draws=DRAWS)
        sign = 1 if METRICS[name].higher_better else -1
        shape = (entries, seeds)
        matrix = sign * values.reshape(shape)
        drawn = sign * reps.reshape(-1, *shape)
        if np.isnan(matrix).any():
            continue
        try:
            beaten = better(matrix, drawn, stack.tests.n_groups, [stack.seeded] * entries, LEVEL)
        except StatsError:
            continue
        counts = np.bincount([b for _, b in beaten], minlength=entries)
        found[name] = in_order_of_means(matrix.mean(1), 1 + counts).tolist()
    return found
