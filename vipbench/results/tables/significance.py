"""Which entries of a column no other method significantly beats, and their intervals."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vipbench.results import stats
from vipbench.results.records.cells import Cells
from vipbench.results.records.comparable import TableError
from vipbench.results.records.metrics import find_metric, metric_value
from vipbench.results.records.protocol_names import derived
from vipbench.results.stats import LEVEL, Interval, StatsError
from vipbench.results.stats.pairing import Load, Pairing, Where
from vipbench.results.tables.table import Entry, Place, Table, rank_groups


def with_significance(table: Table, cells: Cells, load: Load | None) -> tuple[Table, list[str]]:
    """Rank 1 for every method that none of its column is significantly better than: all pairs are
    tested as in `vipbench compare`, and Holm's correction is over the column's pairs, since which
    is best is known only from the same data. Returns the table and notes."""
    if load is None:
        raise TableError("--highlight significant needs the scores of the test images")
    pairing = Pairing(cells, load)
    entries = [list(line) for line in table.entries]
    refused: dict[str, int] = {}
    tested: set[int] = set()
    for group in rank_groups(table):
        if len(group) < 2:
            continue
        at = table.place(*group[0])
        if derived(at.dataset):
            continue
        methods = [table.place(i, j).method for i, j in group]
        try:
            best = unbeaten(pairing, methods, _where(at, cells), at.metric)
        except StatsError as error:
            refused[str(error)] = refused.get(str(error), 0) + 1
            continue
        tested.add(len(methods) * (len(methods) - 1) // 2)
        for (i, j), method in zip(group, methods, strict=True):
            if method in best:
                entries[i][j] = replace(entries[i][j], rank=1)
    notes = []
    if tested:
        sizes = " or ".join(map(str, sorted(tested)))
        notes.append(
            f"Significance: paired tests over seeds and test images (over test images, where no "
            f"method has seeds) at {1 - LEVEL:.0%}, Holm-corrected over the {sizes} pair"
            f"{'s' * (tested != {1})} of methods in a column."
        )
    for why, count in refused.items():
        notes.append(
            f"Not tested, and nothing highlighted, in {count} column{'s' * (count > 1)}: {why}."
        )
    return replace(table, entries=tuple(map(tuple, entries)), ranks="significant"), notes


def unbeaten(
    pairing: Pairing, methods: Iterable[str], place: Where, metric: str, level: float = LEVEL
) -> set[str]:
    """The methods than which no other is significantly better. Raises StatsError."""
    names = list(methods)
    joint = pairing.joint(names, place, metric)
    sign = 1 if find_metric(metric).higher_better else -1
    seeded = [records[0].cell.shots != 0 or records[0].cell.seed != 0 for records in joint.records]
    found = better(sign * joint.values, sign * joint.reps, joint.tests.n_groups, seeded, level)
    beaten = {b for _, b in found}
    return {name for m, name in enumerate(names) if m not in beaten}


def better(
    values: NDArray[np.float64],
    reps: NDArray[np.float64],
    n_groups: int,
    seeded: Sequence[bool],
    level: float = LEVEL,
) -> set[tuple[int, int]]:
    """(a, b) of every pair of M methods of which a is significantly better than b: paired tests,
    Holm-corrected over all pairs.

    values: (M,R), reps: (B,M,R) under resamples of the test images' groups, more is better.
    seeded: M, whether a method has seeds of its own. Raises StatsError.
    """
    pairs = list(itertools.combinations(range(len(values)), 2))
    found = []
    for a, b in pairs:
        own, drawn = values[a] - values[b], reps[:, a] - reps[:, b]
        if not (seeded[a] or seeded[b]):
            own, drawn = own[:1], drawn[:, :1]
        if np.ptp(own) == 0 and np.ptp(drawn) == 0 and own[0] == 0:
            found.append((0.0, 1.0))
            continue
        test = stats.both_interval if seeded[a] or seeded[b] else stats.images_interval
        one = test(own, drawn, n_groups, level)
        found.append((one.estimate, one.p))
    corrected = stats.holm([p for _, p in found])
    return {
        (a, b) if estimate > 0 else (b, a)
        for (a, b), (estimate, _), p in zip(pairs, found, corrected, strict=True)
        if p < 1 - level
    }


def _where(at: Place, cells: Cells) -> Where:
    """The place of an entry; what the table leaves out has one value, or is 0 shots besides."""
    possible = cells.possible()
    dataset = at.dataset or possible[0].dataset
    backbone = at.backbone or possible[0].backbone
    shots = at.shots
    if shots is None:
        own = [c.shots for c in possible if (c.dataset, c.backbone) == (dataset, backbone)]
        shots = next((k for k in own if k != 0), 0)
    return Where(dataset, backbone, shots)


def with_intervals(
    table: Table, cells: Cells, aggregate: str, load: Load | None
) -> tuple[Table, list[str]]:
    """`comparison`'s table with the intervals of `aggregate`, of table.SPREADS, and notes on
    entries that have none. Raises TableError where no entry can have one."""
    if aggregate in ("sd", "none"):
        return replace(table, spread=aggregate), []
    pairing = Pairing(cells, load or (lambda key: None))
    entries, given = [list(line) for line in table.entries], 0
    refused: dict[str, list[str]] = {}
    for i, row in enumerate(table.rows):
        for j, column in enumerate(table.columns):
            entry = entries[i][j]
            if entry.state != "done" or row.kind == "majority":
                continue
            if column.shots == 0 and aggregate == "ci-seeds":
                continue
            assert column.dataset is not None
            assert column.backbone is not None
            assert column.metric is not None
            assert column.shots is not None
            place = Where(column.dataset, column.backbone, column.shots)
            try:
                found = interval(pairing, row.label, place, column.metric, aggregate)
            except StatsError as error:
                refused.setdefault(str(error), []).append(f"{row.label} on {place.words()}")
                continue
            entries[i][j] = _with(entry, found)
            given += 1
    if refused and not given:
        raise TableError(f"--aggregate {aggregate}: {next(iter(refused))}")
    notes = [
        f"No interval for {len(places)} entr{'y' if len(places) == 1 else 'ies'} "
        f"({'; '.join(places[:3])}{' …' if len(places) > 3 else ''}): {why}."
        for why, places in refused.items()
    ]
    return replace(table, spread=aggregate, entries=tuple(map(tuple, entries))), notes


def interval(pairing: Pairing, method: str, place: Where, metric: str, aggregate: str) -> Interval:
    """The interval of one method's mean over seeds; `aggregate`: "ci-seeds", "ci-images" or
    "ci-both". Where the method has no seeds, that for new test images. Raises StatsError."""
    if aggregate == "ci-seeds":
        runs = pairing.runs(method, place)
        values = [metric_value(runs[seed].metrics, metric) for seed in sorted(runs)]
        return stats.seeds_interval(np.array(values, dtype=np.float64))
    joint = pairing.joint([method], place, metric)
    values_, reps, groups = joint.values[0], joint.reps[:, 0], joint.tests.n_groups
    if aggregate == "ci-images" or not joint.seeded:
        return stats.images_interval(values_, reps, groups)
    return stats.both_interval(values_, reps, groups)


def _with(entry: Entry, found: Interval) -> Entry:
    # A share lies between 0 and 1, which a symmetric interval does not know.
    return replace(entry, low=max(0.0, found.low), high=min(1.0, found.high))
