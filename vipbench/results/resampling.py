"""Bootstrap resamples of the test images, by patient where the data name patients. No torch here.

The same resamples serve every cell of a test set, so that differences between cells are paired.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vipbench.results.weighted import TestSet, weighted_metric

DRAWS = 2000
_CHUNK = 2_000_000  # weights held at once


def replicates(
    metric: str,
    tests: TestSet,
    scores: Sequence[NDArray[np.floating[Any]]],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The metric of M cells, and under `draws` resamples of the test images.

    scores: M arrays (N,C). Groups are drawn with replacement, as many as there are; a group's
    images go together. Returns values (M,) and replicates (draws, M); NaN where the metric is
    undefined. The same `seed` draws the same resamples, whatever the cells.
    """
    found = [weighted_metric(metric, tests, s) for s in scores]
    one = np.ones((1, tests.n_groups))
    values = np.array([float(f(one)[0]) for f in found])
    reps = np.empty((draws, len(found)))
    start = 0
    for w in _weights(tests.n_groups, draws, seed):
        for m, f in enumerate(found):
            reps[start : start + len(w), m] = f(w)
        start += len(w)
    return values, reps


def _weights(groups: int, draws: int, seed: int) -> Iterable[NDArray[np.float64]]:
    """(b,G) blocks of how often each group is drawn, `draws` rows in all."""
    if groups * draws <= 2 * _CHUNK:
        return _kept(groups, draws, seed)
    return _drawn(groups, draws, seed)


@lru_cache(maxsize=4)
def _kept(groups: int, draws: int, seed: int) -> tuple[NDArray[np.float64], ...]:
    return tuple(_drawn(groups, draws, seed))


def _drawn(groups: int, draws: int, seed: int) -> Iterator[NDArray[np.float64]]:
    rng = np.random.default_rng([seed, groups])
    size = max(1, _CHUNK // groups)
    for start in range(0, draws, size):
        b = min(size, draws - start)
        picked = rng.integers(0, groups, (b, groups))
        picked += np.arange(b)[:, None] * groups
        counts = np.bincount(picked.ravel(), minlength=b * groups)
        yield counts.reshape(b, groups).astype(np.float64)
