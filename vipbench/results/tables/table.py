"""A table as data, before any format."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from vipbench.results.records.metrics import find_metric
from vipbench.results.records.protocol_names import (
    ALL_CLASSES,
    derived,
    part_name,
)
from vipbench.results.records.protocol_names import (
    AVERAGE as AVERAGE,
)

Shots = int | str

LEVELS = ("method", "dataset", "backbone", "shots", "metric", "part")

# What an entry says beside its mean, as intervals.POPULATIONS and the sample standard deviation.
SPREADS = ("sd", "ci-seeds", "ci-images", "ci-both", "none")


@dataclass(frozen=True)
class Column:
    """One column: a metric on a dataset with a backbone, at `shots` images per class. None: the
    rows say that; `method` and its `kind` are None unless the columns are methods. part: of the
    dataset, where that is a level of its own."""

    dataset: str | None
    backbone: str | None
    metric: str | None
    shots: Shots | None
    method: str | None = None
    kind: str | None = None
    part: str | None = None

    @property
    def title(self) -> str:
        """The metric's name as shown, with its class where it has one."""
        return metric_title(self.metric or "accuracy")

    @property
    def scale(self) -> float:
        """What a fraction is multiplied with to be shown."""
        return metric_scale(self.metric or "accuracy")


@dataclass(frozen=True)
class Entry:
    """One entry. Only state "done" has numbers.

    state: "done", "unfinished" (fewer finished seeds than planned, or the metric is undefined), or
    "blank" (nothing was planned here). mean, sd: fractions over the n finished seeds, sd with
    n - 1 in the denominator and None for n = 1. n_expected: planned seeds. rank: 1 best, 2 second,
    …; ties share it; None for what is not ranked. low, high: the confidence interval that the table
    shows in the place of sd. gain: the difference to the table's base row.
    shots: where neither row nor column say it. saw: how many labelled images of a class its texts
    were written from, where that is more than its shots.
    """

    state: Literal["done", "unfinished", "blank"]
    mean: float | None = None
    sd: float | None = None
    n: int = 0
    n_expected: int = 0
    rank: int | None = None
    low: float | None = None
    high: float | None = None
    gain: float | None = None
    shots: Shots | None = None
    saw: int | None = None

    def __post_init__(self) -> None:
        if (self.state == "done") != (self.mean is not None):
            raise ValueError(f"a {self.state} entry with mean {self.mean}")

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; what only some tables have is left out where it is None."""
        some = ("low", "high", "gain", "shots", "saw")
        return {k: v for k, v in vars(self).items() if v is not None or k not in some}


BLANK = Entry("blank")


@dataclass(frozen=True)
class Row:
    """One row. kind: "majority", "method", "transductive" (a method that sees all test images) or
    "views" (that scores several views of each); an entry whose texts saw more images than its shots
    is "informed" (`Table.place`). Methods are ranked among each other, and informed entries among
    each other. label: the method's. cells: what stands in the row's first columns, the label alone
    by default. The others are None where the columns say them."""

    label: str
    kind: Literal["majority", "method", "transductive", "views"] = "method"
    cells: tuple[str, ...] = ()
    dataset: str | None = None
    backbone: str | None = None
    metric: str | None = None
    shots: Shots | None = None
    part: str | None = None

    def __post_init__(self) -> None:
        if not self.cells:
            object.__setattr__(self, "cells", (self.label,))


@dataclass(frozen=True)
class Place:
    """All that says which number an entry is; None where the whole table has one value."""

    method: str
    kind: str
    dataset: str | None
    backbone: str | None
    metric: str
    shots: Shots | None


@dataclass(frozen=True)
class Table:
    """rows × columns of entries, with the notes on them.

    usual_n: the n of entries at one or more shots that state no other. decimals: of
    the shown numbers, on which ranks rest. notes: one sentence or more each. heads: what the cells
    at the rows' beginning are. column_levels: the header's lines, of LEVELS. spread: of SPREADS.
    ranks: what the legend says of ranks 1 and 2: "best" or "significant". fixed: dataset, backbone
    or metric, where the whole table has one and neither rows nor columns say it. older: labels of
    methods made whole by older code than others (`Cells.older`). lead: how the caption begins, all
    that a paper's caption needs.
    """

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    entries: tuple[tuple[Entry, ...], ...]
    caption: str
    notes: tuple[str, ...] = ()
    usual_n: int = 1
    decimals: int = 1
    heads: tuple[str, ...] = ("method",)
    column_levels: tuple[str, ...] = ("dataset", "backbone", "metric", "shots")
    spread: str = "sd"
    ranks: str = "best"
    fixed: tuple[tuple[str, str], ...] = ()
    older: tuple[str, ...] = ()
    lead: str = ""

    def levels(self) -> list[str]:
        """The header's levels that say something."""
        always = [level for level in self.column_levels if level in ("metric", "shots", "method")]
        varied = [
            level
            for level in self.column_levels
            if len({getattr(column, level) for column in self.columns}) > 1
        ]
        kept = [level for level in self.column_levels if level in always or level in varied]
        return kept or list(self.column_levels[-1:])

    def heading(self, column: int, level: str) -> str:
        """What the header says of a column at one of `levels`, as plain text."""
        found = self.columns[column]
        text = found.title if level == "metric" else str(getattr(found, level))
        text = text or ALL_CLASSES
        return text + self.marks(found.method) if level == "method" and found.method else text

    def marks(self, method: str) -> str:
        """What stands behind a method's name: ‡ where it sees all test images or several views of
        each, † where the texts of one of its entries saw more labelled images than its shots, §
        where it is of older code than others."""
        return self._marks.get(method, "")

    @cached_property
    def _marks(self) -> dict[str, str]:
        found: dict[str, set[str]] = {}
        for i, line in enumerate(self.entries):
            for j, entry in enumerate(line):
                row, column = self.rows[i], self.columns[j]
                marks = found.setdefault(column.method or row.label, set())
                marks |= {" ‡"} if {"transductive", "views"} & {row.kind, column.kind} else set()
                marks |= {" †"} if entry.saw is not None else set()
                marks |= {" §"} if (column.method or row.label) in self.older else set()
        return {method: "".join(sorted(marks, reverse=True)) for method, marks in found.items()}

    def saw(self) -> list[int]:
        """How many images texts saw, of the entries for which that is more than their shots."""
        return sorted({e.saw for line in self.entries for e in line if e.saw is not None})

    def kinds(self) -> set[str]:
        """The kinds of method that are shown."""
        return {row.kind for row in self.rows} | {c.kind for c in self.columns if c.kind}

    def metrics(self) -> list[str]:
        """The metrics that the entries are of."""
        found = [row.metric or column.metric for row in self.rows for column in self.columns]
        one = dict(self.fixed).get("metric", "accuracy")
        return list(dict.fromkeys(name or one for name in found))

    def place(self, row: int, column: int) -> Place:
        """Which number an entry is."""
        r, c, one = self.rows[row], self.columns[column], dict(self.fixed)
        kind, part = c.kind or r.kind, r.part or c.part

        def of(level: str) -> str | None:
            return getattr(r, level) or getattr(c, level) or one.get(level)

        return Place(
            c.method or r.label,
            kind if kind != "method" or self.entries[row][column].saw is None else "informed",
            part_name(of("dataset") or "", part) if part else of("dataset"),
            of("backbone"),
            of("metric") or "accuracy",
            c.shots if r.shots is None else r.shots,
        )

    def number(self, value: float, row: int, column: int, signed: bool = False) -> str:
        """A fraction as it is shown."""
        scaled = value * metric_scale(self.place(row, column).metric)
        return f"{scaled:{'+' if signed else ''}.{self.decimals}f}"

    def differing_n(self, row: int, column: int) -> int | None:
        """The n that an entry has to state, because it is not the one that the caption states."""
        entry = self.entries[row][column]
        place = self.place(row, column)
        single = 0 in (place.shots, entry.shots)
        usual = 1 if single else self.usual_n
        if entry.state != "done" or place.kind == "majority" or entry.n == usual:
            return None
        return None if derived(place.dataset) else entry.n

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; numbers are the records' fractions, not rounded."""
        return {
            "schema": 1,
            "unit": "fraction",
            "caption": self.caption,
            "notes": list(self.notes),
            "columns": [self._of_column(column) for column in self.columns],
            "rows": [
                {
                    "method": row.label,
                    "kind": row.kind,
                    **self._of_row(row),
                    "entries": [entry.to_dict() for entry in entries],
                }
                for row, entries in zip(self.rows, self.entries, strict=True)
            ],
        }

    def _of_column(self, column: Column) -> dict[str, Any]:
        found = {k: v for k, v in vars(column).items() if v is not None}
        return found | ({"older_code": True} if column.method in self.older else {})

    def _of_row(self, row: Row) -> dict[str, Any]:
        names = ("dataset", "backbone", "metric", "shots", "part")
        found: dict[str, Any] = {k: v for k in names if (v := getattr(row, k)) is not None}
        found |= {"older_code": True} if row.label in self.older else {}
        if self.heads != ("method",):
            found["cells"] = dict(zip(self.heads, row.cells, strict=True))
        return found


def metric_title(name: str) -> str:
    """A metric's name as shown, with its class where it has one."""
    _, _, of_class = name.partition(":")
    title = find_metric(name).title
    return f"{title} of {of_class}" if of_class else title


def metric_scale(name: str) -> float:
    """What a metric's fraction is multiplied with to be shown."""
    return 100.0 if find_metric(name).percent else 1.0


def ranked(table: Table) -> Table:
    """The table with ranks: among finished methods of the same column (the same place but for the
    method), on the numbers as shown.

    Ties share a rank, and the next value's rank counts them (1, 1, 3). A single method is not
    ranked.
    """
    entries = [list(row) for row in table.entries]
    for group in rank_groups(table):
        if len(group) < 2:
            continue
        shown = {}
        for i, j in group:
            mean = entries[i][j].mean
            assert mean is not None
            shown[i, j] = float(table.number(mean, i, j))
        metric = find_metric(table.place(*group[0]).metric)
        order = sorted(shown.values(), reverse=metric.higher_better)
        for (i, j), value in shown.items():
            entries[i][j] = replace(entries[i][j], rank=order.index(value) + 1)
    return replace(table, entries=tuple(map(tuple, entries)))


def rank_groups(table: Table) -> list[list[tuple[int, int]]]:
    """(row, column) of the finished entries that differ in their method alone and may be ranked."""
    groups: dict[Place, list[tuple[int, int]]] = {}
    for j in range(len(table.columns)):
        for i in range(len(table.rows)):
            place = table.place(i, j)
            ranks = place.kind in ("method", "informed")
            if ranks and table.entries[i][j].mean is not None:
                groups.setdefault(replace(place, method=""), []).append((i, j))
    return list(groups.values())
