"""Confidence intervals of a table's entries. No torch here."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vipbench.results import stats
from vipbench.results.comparison import Cells
from vipbench.results.metrics import metric_value
from vipbench.results.pairing import Load, Pairing, Where
from vipbench.results.stats import Interval, StatsError
from vipbench.results.table import Entry, Table, TableError


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
