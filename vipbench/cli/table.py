"""`vipbench table`, and the tables that a run leaves in its folder."""

from __future__ import annotations

from pathlib import Path

from vipbench.cli import OK
from vipbench.errors import UsageError, unknown
from vipbench.results.store import Store
from vipbench.results.tables import FORMATS, Table, TableError, comparison, render
from vipbench.spec import SUITE_NAME, RunSpec

FILES = {"table.md": "github", "table.tex": "latex"}


def table_command(folder: Path, format: str, metric: str) -> int:
    """Print the folder's table. Raises UsageError, StoreError."""
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    metrics = [name.strip() for name in metric.split(",") if name.strip()]
    with Store(folder, readonly=True) as store:
        try:
            table = comparison(store.records(), store.plan(), metrics=metrics, title=_title(folder))
        except TableError as error:
            raise UsageError(f"{folder}: {error}") from None
    print(render(table, format).rstrip("\n"))
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
    records = store.records()
    try:
        return comparison(records, store.plan(), title=title)
    except TableError:
        return comparison(records, store.plan(latest=True), title=title)


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(text if text.endswith("\n") else f"{text}\n", encoding="utf-8")
    part.replace(path)


def _title(folder: Path) -> str | None:
    """The title of the folder's last run, where its suite file can be read."""
    try:
        return RunSpec.from_yaml(folder / SUITE_NAME).title
    except UsageError:
        return None
