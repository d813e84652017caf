"""A table as data, before any format. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from vipbench.results.metrics import find_metric


class TableError(ValueError):
    """Records that cannot stand in one table; the message says what differs and what to do."""


@dataclass(frozen=True)
class Column:
    """One column: a metric on a dataset with a backbone, at `shots` images per class."""

    dataset: str
    backbone: str
    metric: str
    shots: int | str

    @property
    def title(self) -> str:
        """The metric's name as shown, with its class where it has one."""
        _, _, of_class = self.metric.partition(":")
        title = find_metric(self.metric).title
        return f"{title} of {of_class}" if of_class else title

    @property
    def scale(self) -> float:
        """What a fraction is multiplied with to be shown."""
        return 100.0 if find_metric(self.metric).percent else 1.0


@dataclass(frozen=True)
class Entry:
    """One entry. Only state "done" has numbers.

    state: "done", "unfinished" (fewer finished seeds than planned, or the metric is undefined), or
    "blank" (nothing was planned here). mean, sd: fractions over the n finished seeds, sd with
    n - 1 in the denominator and None for n = 1. n_expected: planned seeds. rank: 1 best, 2 second,
    …; ties share it; None for what is not ranked.
    """

    state: Literal["done", "unfinished", "blank"]
    mean: float | None = None
    sd: float | None = None
    n: int = 0
    n_expected: int = 0
    rank: int | None = None

    def __post_init__(self) -> None:
        if (self.state == "done") != (self.mean is not None):
            raise ValueError(f"a {self.state} entry with mean {self.mean}")


BLANK = Entry("blank")


@dataclass(frozen=True)
class Row:
    """One row. kind: "majority", "method", or "transductive" (a method that sees all test images);
    only methods are ranked."""

    label: str
    kind: Literal["majority", "method", "transductive"] = "method"


@dataclass(frozen=True)
class Table:
    """rows × columns of entries, with what must be said of them.

    usual_n: the n that entries at one or more shots have where nothing else is said. decimals: of
    the shown numbers, on which ranks rest. notes: one sentence or more each.
    """

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    entries: tuple[tuple[Entry, ...], ...]
    caption: str
    notes: tuple[str, ...] = ()
    usual_n: int = 1
    decimals: int = 1

    def levels(self) -> list[str]:
        """The header's levels that say something: of dataset, backbone, metric, shots."""
        varied = [
            name
            for name in ("dataset", "backbone")
            if len({getattr(column, name) for column in self.columns}) > 1
        ]
        return [*varied, "metric", "shots"]

    def heading(self, column: int, level: str) -> str:
        """What the header says of a column at one of `levels`, as plain text."""
        found = self.columns[column]
        return found.title if level == "metric" else str(getattr(found, level))

    def number(self, value: float, column: int) -> str:
        """A fraction as it is shown."""
        return f"{value * self.columns[column].scale:.{self.decimals}f}"

    def differing_n(self, row: int, column: int) -> int | None:
        """The n that an entry has to state, because it is not the one that the caption states."""
        entry = self.entries[row][column]
        usual = 1 if self.columns[column].shots == 0 else self.usual_n
        if entry.state != "done" or self.rows[row].kind == "majority" or entry.n == usual:
            return None
        return entry.n

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; numbers are the records' fractions, not rounded."""
        return {
            "schema": 1,
            "unit": "fraction",
            "caption": self.caption,
            "notes": list(self.notes),
            "columns": [vars(column) for column in self.columns],
            "rows": [
                {
                    "method": row.label,
                    "kind": row.kind,
                    "entries": [vars(entry) for entry in entries],
                }
                for row, entries in zip(self.rows, self.entries, strict=True)
            ],
        }


def ranked(table: Table) -> Table:
    """The table with ranks: per column, among finished methods, on the numbers as shown.

    Ties share a rank and the next value has the next one. A column with a single method ranks
    nobody.
    """
    entries = [list(row) for row in table.entries]
    for j, column in enumerate(table.columns):
        shown = {
            i: float(table.number(entry.mean, j))
            for i, row in enumerate(entries)
            if table.rows[i].kind == "method" and (entry := row[j]).mean is not None
        }
        if len(shown) < 2:
            continue
        order = sorted(set(shown.values()), reverse=find_metric(column.metric).higher_better)
        for i, value in shown.items():
            entries[i][j] = replace(entries[i][j], rank=order.index(value) + 1)
    return replace(table, entries=tuple(map(tuple, entries)))
