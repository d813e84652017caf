"""Ranks that rest on paired tests, for the leaderboard. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vipbench.results.intervals import LEVEL, StatsError
from vipbench.results.metrics import METRICS
from vipbench.results.predictions import Predictions
from vipbench.results.ranking import in_order_of_means
from vipbench.results.record import Record
from vipbench.results.resampling import replicates
from vipbench.results.settings import protocol
from vipbench.results.significance import better
from vipbench.results.weighted import TestSet

DRAWS = 1000
# What a support set depends on besides dataset, shots and seed.
_OF_THE_DRAW = ("sampler", "shots_unit")


@dataclass(frozen=True)
class Stack:
    """What M entries said of the same N test images on the same R support sets: scores[m][r] is
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
    drawn = [{k: protocol(r[0]).get(k) for k in _OF_THE_DRAW} for r in entries]
    if any(one != drawn[0] for one in drawn):
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
    seeded = entries[0][0].cell.shots != 0
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
