"""Tables of any shape: method, dataset, backbone, shots and metric as rows or columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vipbench.errors import UsageError, unknown
from vipbench.results.records.cells import Cells
from vipbench.results.records.comparable import TableError
from vipbench.results.records.protocol_names import ALL_CLASSES, BASE, NEW, split_part
from vipbench.results.stats.pairing import Load
from vipbench.results.tables.caption import with_words
from vipbench.results.tables.comparison import MAJORITY, plain_table
from vipbench.results.tables.derived import with_average, with_parts
from vipbench.results.tables.significance import with_intervals
from vipbench.results.tables.table import (
    BLANK,
    LEVELS,
    SPREADS,
    Column,
    Entry,
    Place,
    Row,
    Table,
    ranked,
)

HIGHLIGHTS = ("best", "significant", "none")
FLAG = {"method": "methods", "dataset": "datasets", "backbone": "backbones", "shots": "shots"}
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Layout:
    """What a table looks like.

    rows, cols: of LEVELS, each once; what is in neither must have one value. aggregate: of SPREADS.
    highlight: of HIGHLIGHTS. average: with a further dataset, the mean over all. heads, cells:
    names of columns to the left, and what stands there for each method, in the place of the method.
    bases: method -> the method to which its difference is shown.
    """

    rows: tuple[str, ...] = ("method",)
    cols: tuple[str, ...] = ("dataset", "backbone", "metric", "shots")
    metrics: tuple[str, ...] = ("accuracy", "macro_f1")
    aggregate: str = "sd"
    highlight: str = "best"
    average: bool = False
    heads: tuple[str, ...] = ()
    cells: Mapping[str, tuple[str, ...]] | None = None
    bases: Mapping[str, str] | None = None
    decimals: int = 1
    title: str | None = None

    def __post_init__(self) -> None:
        for level in (*self.rows, *self.cols):
            if level not in LEVELS:
                raise unknown("level of --rows and --cols", level, LEVELS)
        both = [*self.rows, *self.cols]
        if len(set(both)) != len(both):
            raise UsageError("--rows and --cols: name each level once")
        if "method" not in both:
            raise UsageError("--rows and --cols: 'method' must be in one of them")
        if not self.rows or not self.cols:
            raise UsageError("--rows and --cols: each needs a level")
        if self.aggregate not in SPREADS:
            raise unknown("aggregate", self.aggregate, SPREADS)
        if self.highlight not in HIGHLIGHTS:
            raise unknown("highlight", self.highlight, HIGHLIGHTS)


def base_to_new(cells: Cells) -> bool:
    """Whether all cells are of base and new classes."""
    return all(split_part(cell.dataset)[1] in (BASE, NEW) for cell in cells.planned)


def lay_out(cells: Cells, layout: Layout, load: Load | None = None) -> Table:
    """The table of `cells` in a layout.

    load: a record's predictions by key, for intervals over test images and for significance.
    Raises UsageError and TableError as `comparison`, and TableError where entries would have to be
    averaged to fit the layout, naming the flag that keeps them apart.
    """
    from vipbench.results.tables.significance import with_significance

    if base_to_new(cells) and (layout.rows, layout.cols) == (Layout.rows, Layout.cols):
        # Beside each other they are what a reader compares.
        layout = replace(layout, cols=(*layout.cols, "part"))
    table = plain_table(cells, layout.metrics, layout.decimals)
    table, notes = with_intervals(table, cells, layout.aggregate, load)
    if layout.average:
        table = with_average(table)
    table = with_parts(table)
    table = _with_base(_pivot(table, layout), layout)
    if layout.highlight == "best":
        table = ranked(table)
    elif layout.highlight == "significant":
        table, more = with_significance(table, cells, load)
        notes += more
    table = with_words(table, cells, layout.title)
    if any(entry.gain is not None for line in table.entries for entry in line):
        notes.append(f"In brackets, with its sign: the difference {_bases(layout)}.")
    return replace(table, notes=(*table.notes, *notes))


def _pivot(table: Table, layout: Layout) -> Table:
    """The same entries with `layout`'s levels down and across."""
    found: dict[tuple[Key, Key], Entry] = {}
    kinds = {row.label: row for row in table.rows}
    merged = "shots" not in (*layout.rows, *layout.cols)
    order = _order(table, layout)
    for i in range(len(table.rows)):
        for j in range(len(table.columns)):
            entry = table.entries[i][j]
            if entry.state == "blank":
                continue
            at = _levels(table.place(i, j), layout)
            down = tuple(at[level] for level in layout.rows)
            across = tuple(at[level] for level in layout.cols)
            # Zero-shot and trained rows share a column; a method has only one of the two, and the
            # majority row has the same number in both.
            if (down, across) not in found or (merged and at["shots"] != 0):
                found[down, across] = replace(entry, shots=at["shots"]) if merged else entry
    downs = sorted({down for down, _ in found}, key=lambda key: order(layout.rows, key))
    acrosses = sorted({across for _, across in found}, key=lambda key: order(layout.cols, key))
    rows = tuple(_row(layout, down, kinds) for down in downs)
    columns = tuple(_column(layout, across, kinds) for across in acrosses)
    entries = tuple(tuple(found.get((d, a), BLANK) for a in acrosses) for d in downs)
    left = [v for v in ("dataset", "backbone", "metric") if v not in (*layout.rows, *layout.cols)]
    first = _levels(table.place(0, 0), layout) if table.rows and table.columns else {}
    fixed = tuple((level, first[level]) for level in left if first)
    return replace(
        table,
        rows=rows,
        columns=columns,
        entries=entries,
        heads=_heads(layout),
        column_levels=layout.cols,
        fixed=fixed,
    )


def _levels(place: Place, layout: Layout) -> dict[str, Any]:
    """level -> value of an entry's place; `part` is empty where it is no level of the layout."""
    found = {**vars(place), "part": ""}
    if "part" in (*layout.rows, *layout.cols):
        found["dataset"], found["part"] = split_part(place.dataset or "")
    return found


def _at(levels: Sequence[str], key: Key, level: str) -> Any:
    return key[levels.index(level)] if level in levels else None


def _order(table: Table, layout: Layout) -> Any:
    """A sort key for rows and columns; TableError where entries would share a place."""
    places = [
        _levels(table.place(i, j), layout)
        for i in range(len(table.rows))
        for j in range(len(table.columns))
        if table.entries[i][j].state != "blank" and table.rows[i].kind != "majority"
    ]
    values = {level: list(dict.fromkeys(p[level] for p in places)) for level in LEVELS}
    values["method"] = list(dict.fromkeys([MAJORITY, *(row.label for row in table.rows)]))
    for level in LEVELS:
        if level in (*layout.rows, *layout.cols):
            continue
        shown = [v for v in values[level] if not (level == "shots" and v == 0)]
        if level == "metric":
            shown = list(layout.metrics)
        if len(shown) > 1:
            flag = FLAG.get(level, "metric")
            raise TableError(
                f"{', '.join(map(str, shown))} would share an entry, and entries are not "
                f"averaged: add {level} to --rows or --cols, or choose one with --{flag}"
            )
    values["shots"].sort(key=lambda k: float("inf") if isinstance(k, str) else k)
    rank = {level: {v: n for n, v in enumerate(found)} for level, found in values.items()}
    for level in ("dataset", "backbone", "metric", "shots", "part"):
        # The majority row alone may have some.
        for j in range(len(table.columns)):
            rank[level].setdefault(_levels(table.place(0, j), layout)[level], len(rank[level]))

    def place(levels: Sequence[str], key: Key) -> list[int]:
        return [rank[level][value] for level, value in zip(levels, key, strict=True)]

    return place


def _column(layout: Layout, key: Key, kinds: Mapping[str, Row]) -> Column:
    dataset, backbone, metric, shots, method, part = (
        _at(layout.cols, key, level)
        for level in ("dataset", "backbone", "metric", "shots", "method", "part")
    )
    kind = kinds[method].kind if method is not None else None
    return Column(dataset, backbone, metric, shots, method, kind, part)


def _heads(layout: Layout) -> tuple[str, ...]:
    heads: list[str] = []
    for level in layout.rows:
        heads += layout.heads if level == "method" and layout.heads else [level]
    return tuple(heads)


def _row(layout: Layout, key: Key, kinds: Mapping[str, Row]) -> Row:
    cells: list[str] = []
    for level, value in zip(layout.rows, key, strict=True):
        if level == "method" and layout.cells is not None and layout.heads:
            cells += layout.cells.get(value, (value,) + ("",) * (len(layout.heads) - 1))
        elif level == "metric":
            cells.append(Column("", "", value, 0).title)
        elif level == "part":
            cells.append(value or ALL_CLASSES)
        else:
            cells.append(str(value))
    names = ("dataset", "backbone", "metric", "part")
    own = {level: _at(layout.rows, key, level) for level in names}
    shots = _at(layout.rows, key, "shots")
    if "method" in layout.rows:
        source = kinds[_at(layout.rows, key, "method")]
        return Row(source.label, source.kind, tuple(cells), **own, shots=shots)
    # Columns are methods, of which each says for itself what it is.
    return Row("", "method", tuple(cells), **own, shots=shots)


def _with_base(table: Table, layout: Layout) -> Table:
    """With each entry's difference to its base method's in the same column."""
    if layout.bases is None:
        return table
    lines = {row.label: line for row, line in zip(table.rows, table.entries, strict=True)}
    entries = []
    for row, line in zip(table.rows, table.entries, strict=True):
        base = lines.get(layout.bases.get(row.label, ""))
        entries.append(line if base is None else tuple(map(_gain, line, base)))
    return replace(table, entries=tuple(entries))


def _gain(entry: Entry, base: Entry) -> Entry:
    if entry.mean is None or base.mean is None:
        return entry
    return replace(entry, gain=entry.mean - base.mean)


def _bases(layout: Layout) -> str:
    found: dict[str, list[str]] = {}
    for method, base in (layout.bases or {}).items():
        found.setdefault(base, []).append(method)
    if len(found) == 1:
        return f"to {next(iter(found))}"
    return "; ".join(f"to {base} ({', '.join(own)})" for base, own in found.items())
