"""From records to a comparison table: methods down, shots across."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vipbench.results.records.cells import Cells, Place, cells_of, check_classes, check_comparable
from vipbench.results.records.comparable import TableError
from vipbench.results.records.metrics import majority_metrics, metric_value
from vipbench.results.records.plan import PlannedCell
from vipbench.results.records.record import Record
from vipbench.results.tables import caption
from vipbench.results.tables.derived import with_parts
from vipbench.results.tables.differences import ascending
from vipbench.results.tables.table import BLANK, Column, Entry, Row, Table, ranked

MAJORITY = "majority class"

Spot = tuple[str, str, str, int | str]  # (dataset, backbone, metric, shots)


def comparison(
    records: Iterable[Record],
    planned: Iterable[PlannedCell | Mapping[str, Any]] | None = None,
    *,
    metrics: Sequence[str] = ("accuracy", "macro_f1"),
    decimals: int = 1,
    title: str | None = None,
) -> Table:
    """The comparison of methods over shots, datasets and backbones.

    planned: the cells to show, in the order of the rows (`Store.plan()`); records of other cells
    are left out, and a note counts them. Without any the records themselves are the plan. metrics:
    names as of `find_metric`. decimals: of the shown numbers.

    An entry has numbers only where every planned seed has finished. Raises UsageError for an
    unknown metric, TableError where there are no cells, or where records that would share an entry
    were made under different settings, or those of a column on different images or weights.
    """
    cells = cells_of(list(records), planned)
    return caption.with_words(
        ranked(with_parts(plain_table(cells, metrics, decimals))), cells, title
    )


def plain_table(cells: Cells, metrics: Sequence[str], decimals: int = 1) -> Table:
    """The comparison without ranks, caption and notes: methods down, shots within metrics within
    backbones within datasets across. Raises as `comparison`."""
    check_classes(cells, metrics)
    if not metrics or len(set(metrics)) != len(metrics):
        raise TableError(f"expected one or more different metrics, got {list(metrics)}")
    if not 0 <= decimals <= 6:
        raise TableError(f"decimals: expected 0 to 6, got {decimals}")
    check_comparable(cells, metrics)
    spots = _spots(cells, metrics)
    rows, entries = _rows(cells, spots)
    n_of = Counter(
        entry.n_expected
        for row, line in zip(rows, entries, strict=True)
        for entry, (_, _, _, shots) in zip(line, spots, strict=True)
        if row.kind != "majority" and shots != 0 and entry.n_expected
    )
    return Table(
        columns=tuple(Column(*spot) for spot in spots),
        rows=rows,
        entries=entries,
        caption="",
        usual_n=max(n_of, key=lambda n: (n_of[n], n)) if n_of else 1,
        decimals=decimals,
    )


def _spots(cells: Cells, metrics: Sequence[str]) -> tuple[Spot, ...]:
    shots: dict[Place, set[int | str]] = {}
    for cell in cells.planned:
        shots.setdefault((cell.dataset, cell.backbone), set())
        if cell.status != "impossible":
            shots[cell.dataset, cell.backbone].add(cell.shots)
    datasets = dict.fromkeys(cell.dataset for cell in cells.planned)
    backbones = dict.fromkeys(cell.backbone for cell in cells.planned)
    return tuple(
        (dataset, backbone, metric, k)
        for dataset in datasets
        for backbone in backbones
        for metric in metrics
        for k in sorted(shots.get((dataset, backbone), ()), key=ascending)
    )


def _rows(
    cells: Cells, spots: Sequence[Spot]
) -> tuple[tuple[Row, ...], tuple[tuple[Entry, ...], ...]]:
    rows: list[Row] = []
    entries: list[tuple[Entry, ...]] = []
    majority = _majority(cells, spots)
    if any(entry.state == "done" for entry in majority):
        rows.append(Row(MAJORITY, "majority"))
        entries.append(majority)
    by_method: dict[str, list[PlannedCell]] = {}
    for cell in cells.planned:
        by_method.setdefault(cell.method, []).append(cell)
    for label, own in by_method.items():
        found = [cells.record_of(cell) for cell in own]
        kinds = {r.apart for r in found if r is not None}
        rows.append(
            Row(
                label,
                "transductive"
                if "transductive" in kinds
                else "views"
                if "views" in kinds
                else "method",
            )
        )
        places: dict[Any, list[PlannedCell]] = {}
        for cell in own:
            if cell.status != "impossible":
                places.setdefault((cell.dataset, cell.backbone, cell.shots), []).append(cell)
        entries.append(
            tuple(
                _entry(cells, places.get((dataset, backbone, shots), []), metric)
                for dataset, backbone, metric, shots in spots
            )
        )
    return tuple(rows), tuple(entries)


def _entry(cells: Cells, own: Sequence[PlannedCell], metric: str) -> Entry:
    if not own:
        return BLANK
    values = []
    # In the order of the seeds, whatever the order in which the cells came to finish: a sum of
    # floating-point numbers depends on it.
    for cell in sorted(own, key=lambda cell: cell.seed):
        record = cells.record_of(cell)
        value = metric_value(record.metrics, metric) if record is not None and record.ok else None
        if value is not None:
            values.append(value)
    if len(values) < len(own):
        return Entry("unfinished", n=len(values), n_expected=len(own))
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    found = [r for cell in own if (r := cells.record_of(cell)) is not None]
    saw = max((n for r in found if (n := r.texts_saw_more) is not None), default=None)
    return Entry("done", float(np.mean(values)), sd, len(values), len(own), saw=saw)


def _majority(cells: Cells, spots: Sequence[Spot]) -> tuple[Entry, ...]:
    by_place: dict[Place, dict[str, Any]] = {}
    for cell, record in cells.done():
        data, place = record.data, (cell.dataset, cell.backbone)
        if place not in by_place and sum(data.train_counts) > 0:
            by_place[place] = majority_metrics(
                data.train_counts, data.test_counts, data.class_names
            )
    entries = []
    for dataset, backbone, metric, _ in spots:
        value = metric_value(by_place.get((dataset, backbone), {}), metric)
        entries.append(BLANK if value is None else Entry("done", value, None, 1, 1))
    return tuple(entries)
