"""Metrics of weighted test images, many weightings at once.

A bootstrap resample is a weight per group of test images (0, 1, 2, …). Metrics of the predicted
class and the ECE are functions of sums over groups, so that all resamples are one matrix product;
AUROC and AUPRC are sums along the images in the order of their scores. scikit-learn computes one
weighting at a time; with all weights 1, and with `sample_weight`, the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vipbench.results.records.metrics import ECE_BINS, find_metric, log_odds, softmax

Floats = NDArray[np.float64]

# (W (B,G)) -> (B,): the metric under each of B weightings of G groups; NaN where it is undefined.
Weighted = Callable[[Floats], Floats]


@dataclass(frozen=True, eq=False)
class TestSet:
    """The test images that all compared cells share.

    labels: (N,) class indices. group: (N,) the index 0…G-1 of each image's patient or lesion;
    without groups in the data each image is its own. class_names: C names.
    """

    __test__ = False  # not a class of tests

    labels: NDArray[np.int64]
    group: NDArray[np.int64]
    class_names: tuple[str, ...]
    grouped: bool

    @classmethod
    def of(
        cls, labels: NDArray[np.int64], groups: list[str] | None, class_names: list[str]
    ) -> TestSet:
        """From labels (N,), the images' group ids where there are any, and C class names."""
        found = np.arange(len(labels))
        if groups is not None:
            found = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)[1]
        return cls(labels, found, tuple(class_names), groups is not None)

    @property
    def n_groups(self) -> int:
        """G, the number of units that are resampled."""
        return int(self.group.max()) + 1

    def sums(self, per_image: Floats) -> Floats:
        """(N,K) -> (G,K): sums over each group's images."""
        if not self.grouped:
            return per_image
        out = np.zeros((self.n_groups, per_image.shape[1]))
        np.add.at(out, self.group, per_image)
        return out


def weighted_metric(name: str, tests: TestSet, scores: NDArray[np.floating[Any]]) -> Weighted:
    """The metric `name` (as of `find_metric`) of one cell's scores (N,C), as a function of the
    groups' weights. Raises UsageError for an unknown metric or class."""
    find_metric(name)
    base, _, of_class = name.partition(":")
    # As the metrics in a record: from scores in float32.
    s = scores.astype(np.float32).astype(np.float64)
    if base == "ece":
        return _ece(tests, s)
    if base in ("auroc", "auprc"):
        return _ranking(base, tests, s)
    return _confusion(base, of_class, tests, s)


def _confusion(base: str, of_class: str, tests: TestSet, s: Floats) -> Weighted:
    c = len(tests.class_names)
    if base == "accuracy":
        right = (s.argmax(1) == tests.labels).astype(float)
        sums = tests.sums(np.stack([right, np.ones(len(right))], 1))

        def accuracy(w: Floats) -> Floats:
            found = w @ sums
            return np.asarray(found[:, 0] / found[:, 1])

        return accuracy
    cell = tests.labels * c + s.argmax(1)
    flat = tests.sums(np.eye(c * c)[cell])
    chosen = tests.class_names.index(of_class) if of_class in tests.class_names else None

    def of_counts(w: Floats) -> Floats:
        table = (w @ flat).reshape(-1, c, c)
        present, predicted = table.sum(2), table.sum(1)
        right = np.diagonal(table, axis1=1, axis2=2)
        with np.errstate(invalid="ignore", divide="ignore"):
            if base == "macro_f1":
                f1 = 2 * right / (present + predicted)
                return np.asarray(np.nan_to_num(f1, nan=0.0).mean(1))
            if base == "specificity":
                rest = present.sum(1, keepdims=True) - present
                each = (rest - predicted + right) / rest
            else:
                each = right / present
            if base == "balanced_accuracy":
                return np.asarray(np.nansum(each, 1) / (~np.isnan(each)).sum(1))
        return each[:, chosen] if chosen is not None else np.full(len(w), np.nan)

    return of_counts


def _ece(tests: TestSet, s: Floats) -> Weighted:
    confidence = softmax(s).max(1)
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    gap = (s.argmax(1) == tests.labels) - confidence
    parts = np.zeros((len(s), ECE_BINS + 1))
    parts[np.arange(len(s)), bins] = gap
    parts[:, -1] = 1
    sums = tests.sums(parts)

    def ece(w: Floats) -> Floats:
        found = w @ sums
        return np.asarray(np.abs(found[:, :-1]).sum(1) / found[:, -1])

    return ece


def _ranking(base: str, tests: TestSet, s: Floats) -> Weighted:
    order = log_odds(s)
    classes = range(len(tests.class_names))
    one = _auroc if base == "auroc" else _auprc

    def mean(w: Floats) -> Floats:
        per_image = w[:, tests.group]
        each = np.stack([one(per_image, tests.labels == k, order[:, k]) for k in classes], 1)
        counted = (~np.isnan(each)).sum(1)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.nansum(each, 1) / np.where(counted, counted, np.nan))

    return mean


def _steps(w: Floats, positive: NDArray[np.bool_], score: Floats) -> tuple[Floats, Floats]:
    """Weights of true and of false positives at each threshold, from the highest down: (B,T)."""
    order = np.argsort(-score, kind="stable")
    # Images of one score pass the threshold together.
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    w = w[:, order]
    hit = np.cumsum(w * positive[order], 1)[:, ends]
    return hit, np.cumsum(w, 1)[:, ends] - hit


def _auroc(w: Floats, positive: NDArray[np.bool_], score: Floats) -> Floats:
    hit, miss = _steps(w, positive, score)
    zero = np.zeros((len(w), 1))
    h, m = np.hstack([zero, hit]), np.hstack([zero, miss])
    area = ((h[:, 1:] + h[:, :-1]) / 2 * np.diff(m, axis=1)).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(area / (hit[:, -1] * miss[:, -1]))


def _auprc(w: Floats, positive: NDArray[np.bool_], score: Floats) -> Floats:
    hit, miss = _steps(w, positive, score)
    total = hit[:, -1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.nan_to_num(hit / (hit + miss), nan=0.0)
        gained = np.diff(hit, axis=1, prepend=0) / total
        # A class that has all images has no curve, as in the records.
        alone = (miss[:, -1] == 0) | (total[:, 0] == 0)
    return np.where(alone, np.nan, (precision * gained).sum(1))


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
