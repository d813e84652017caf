"""`vipbench table`, and the tables that a run leaves in its folder."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vipbench import files
from vipbench.cli.commands.disputes import tell_disputes
from vipbench.cli.commands.selection import Selection, labels, opened, title_of
from vipbench.cli.commands.text import columns
from vipbench.cli.exit_codes import OK
from vipbench.errors import printable, unknown
from vipbench.results.records.cells import Cells, cells_of
from vipbench.results.records.code import code
from vipbench.results.records.comparable import differences, settings
from vipbench.results.store.store import Store
from vipbench.results.tables import FORMATS, Table, TableError, render
from vipbench.results.tables.layout import Layout, lay_out
from vipbench.results.tables.presets import PRESETS, preset

FILES = {"table.md": "github", "table.tex": "latex"}


def table_command(
    folder: Path,
    format: str,
    preset_name: str | None,
    shape: Mapping[str, str | None],
    looks: Mapping[str, Any],
    decimals: int,
    chosen: Selection,
) -> int:
    """Print the folder's table. shape: `rows`, `cols`, `metrics` as given, None where not; looks:
    further fields of a Layout. Raises UsageError, StoreError."""
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if preset_name is not None and preset_name not in PRESETS:
        raise unknown("preset", preset_name, PRESETS)
    named: dict[str, Any] = {
        name: labels(value) for name, value in shape.items() if value is not None
    }
    rows, cols = named.get("rows"), named.get("cols")
    if rows is not None and cols is None and preset_name is None:
        named["cols"] = tuple(level for level in Layout().cols if level not in rows)
    if cols is not None and rows is None and preset_name is None:
        named["rows"] = tuple(level for level in ("method", *Layout().cols) if level not in cols)
    layout = Layout(**named, **looks, decimals=decimals, title=title_of(folder))
    with opened(folder) as store:
        cells = chosen.cells(store)
        if preset_name is not None:
            given = [*named, *(["average"] if looks["average"] else [])]
            cells, layout = preset(preset_name, cells, layout, given)
        table = lay_out(cells, layout, store.predictions)
        print(render(table, format).rstrip("\n"))
        # Beside the table: its formats are read by programs.
        tell_disputes(store)
    return OK


def superseded_command(folder: Path) -> int:
    """List the records whose place another took, with what it has that they have not. Raises
    StoreError."""
    with opened(folder) as store:
        records, gone, planned = store.records(history=False), store.superseded(), store.plan()
    keys = {cell.slot: cell.key for cell in planned}
    standing = {record.key: record for record in records if record.key not in gone}
    lines = [
        [
            "key",
            "method",
            "dataset",
            "backbone",
            "shots",
            "seed",
            "accuracy",
            "created",
            "what differs",
        ]
    ]
    for record in records:
        if record.key in gone:
            c, accuracy = record.cell, record.metrics.get("accuracy")
            other = standing.get(keys.get(record.slot) or "")
            versions = [settings(r) | code(r) for r in (record, other) if r is not None]
            why = "; ".join(differences(versions)) or "not yet run with the row's present code"
            why = re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", why)
            number = "" if accuracy is None else f"{100 * accuracy:.1f}"
            named = (record.key[:12], c.method, c.dataset, c.backbone, c.shots, c.seed)
            lines.append([*map(str, named), number, record.created, why])
    if len(lines) == 1:
        print(f"{folder} has no record whose place another took.")
        return OK
    print("\n".join(columns(lines)))
    print(f"\n`vipbench show KEY {shlex.quote(str(folder))}` prints one of them whole.")
    return OK


def save_tables(folder: Path, title: str | None) -> str:
    """Write table.md, table.tex and results.csv of a results folder; returns the table for a
    terminal. Raises TableError, StoreError, OSError."""
    with Store(folder, readonly=True) as store:
        table = _folder_table(store, title)
        for name, form in FILES.items():
            _write(folder / name, render(table, form))
        store.export_csv(folder / "results.csv")
    return render(table, "text").rstrip("\n")


def _folder_table(store: Store, title: str | None) -> Table:
    """All that the folder was asked for; where that mixes what cannot stand in one table, what
    the last run asked for."""
    # The files may be moved with their folder: they name it, and no path to it.
    records, name = store.records(), store.out_dir.name
    try:
        return _default_table(cells_of(records, store.plan(), name), title)
    except TableError:
        return _default_table(cells_of(records, store.plan(latest=True), name), title)


def _default_table(cells: Cells, title: str | None) -> Table:
    return lay_out(cells, Layout(title=title))


def _write(path: Path, text: str) -> None:
    text = printable(text)
    files.write(path, text if text.endswith("\n") else f"{text}\n")
