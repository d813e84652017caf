"""Means with their intervals, and places that entries share. No torch here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vipbench.results.intervals import LEVEL, StatsError, images_interval
from vipbench.results.predictions import Predictions
from vipbench.results.resampling import replicates
from vipbench.results.weighted import TestSet


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
    half = _t(n - 1) * sd / math.sqrt(n)
    return Bounds(mean, n, sd, mean - half, mean + half, "seeds")


@lru_cache
def _t(df: int) -> float:
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
            told = images_interval(values, reps, tests.n_groups)
        except StatsError:
            continue
        found[metric] = Bounds(told.estimate, 1, None, told.low, told.high, "images")
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
