"""The records of a comparison, by method and place, and whether they are comparable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vipbench.errors import unknown
from vipbench.results.records import code as versions
from vipbench.results.records.comparable import (
    TableError,
    benchmark,
    differences,
    require_equal,
    revisions,
    settings,
)
from vipbench.results.records.metrics import find_metric
from vipbench.results.records.plan import PlannedCell, planned_cell
from vipbench.results.records.record import Record

Place = tuple[str, str]  # (dataset, backbone)


@dataclass(frozen=True)
class Cells:
    """The cells of a table, with the records that there are: what captions and notes tell of.

    left_out: records of no planned cell. outdated: records, by key, of planned cells whose row is
    of other code by now; they count as not yet run. older: label -> name -> what is older of a row
    made whole by older code. folder: where the records lie, for commands.
    """

    planned: tuple[PlannedCell, ...]
    records: Mapping[str, Record]
    left_out: tuple[Record, ...] = ()
    outdated: Mapping[str, Record] = field(default_factory=dict)
    older: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    folder: str = ""

    def possible(self) -> list[PlannedCell]:
        """Cells that can have a number."""
        return [cell for cell in self.planned if cell.status != "impossible"]

    def record_of(self, cell: PlannedCell) -> Record | None:
        """A cell's record, done or failed."""
        return self.records.get(cell.key)

    def done(self) -> list[tuple[PlannedCell, Record]]:
        """Cells with numbers."""
        return self._done

    @cached_property
    def _done(self) -> list[tuple[PlannedCell, Record]]:
        pairs = ((cell, self.record_of(cell)) for cell in self.possible())
        return [(cell, record) for cell, record in pairs if record is not None and record.ok]


def cells_of(
    records: list[Record],
    planned: Iterable[PlannedCell | Mapping[str, Any]] | None,
    folder: str = "",
) -> Cells:
    """The cells that were asked for, with their records. Raises TableError where a place in the
    grid is taken twice."""
    by_key = {record.key: record for record in records}
    if len(by_key) != len(records):
        raise TableError("the same record is given twice")
    cells = [planned_cell(cell) for cell in planned or ()]
    if not cells:
        cells = [PlannedCell.of(record, status="done") for record in records]
    slots: dict[Any, PlannedCell] = {}
    for cell in cells:
        other = slots.setdefault(cell.slot, cell)
        if other.key == cell.key:
            continue
        pair = [by_key.get(c.key) for c in (other, cell)]
        changes = differences([settings(r) | versions.code(r) for r in pair if r is not None])
        raise TableError(
            f"{cell.words()} occurs twice, with different settings: "
            f"{'; '.join(changes) or 'the records do not state which'}. Show one output folder, "
            f"or give the variants labels of their own (in a suite: name: …, label: …)"
        )
    if not slots:
        raise TableError("there are no cells to show; `vipbench run` creates some")
    keys = {cell.key for cell in cells}
    asked = [record for record in records if record.key in keys]
    outdated = versions.outdated(asked, cells)
    shown = {record.key: record for record in asked if record.key not in outdated}
    left_out = tuple(record for record in records if record.key not in keys)
    older = versions.older(list(shown.values()), cells)
    return Cells(tuple(slots.values()), shown, left_out, outdated, older, folder)


def check_classes(cells: Cells, metrics: Sequence[str]) -> None:
    """Raise UsageError for an unknown metric, or one of a class that no dataset has."""
    classes = {name for _, record in cells.done() for name in record.data.class_names}
    for metric in metrics:
        find_metric(metric)
        of_class = metric.partition(":")[2]
        if of_class and classes and of_class not in classes:
            raise unknown(f"class in '{metric}':", of_class, classes)


def check_comparable(cells: Cells, metrics: Sequence[str]) -> None:
    """Raise TableError where an entry mixes settings, or a column images, weights, definitions."""
    entries: dict[Any, list[Record]] = {}
    places: dict[Place, list[Record]] = {}
    for cell, record in cells.done():
        entries.setdefault(cell.slot[:-1], []).append(record)
        places.setdefault((cell.dataset, cell.backbone), []).append(record)
    for (backbone, dataset, method, shots), group in entries.items():
        where = f"{method} on {dataset}, {backbone}, shots {shots}"
        require_equal(group, [settings(r) for r in group], where)
    for (dataset, backbone), group in places.items():
        where = f"{dataset}, {backbone}"
        require_equal(group, [benchmark(r) for r in group], where)
        found_revisions = [found for r in group if (found := revisions(r, metrics))]
        for name in dict.fromkeys(name for found in found_revisions for name in found):
            # A record from before a metric was added has no number to mix, and no revision.
            require_equal(group, [{name: f[name]} for f in found_revisions if name in f], where)
