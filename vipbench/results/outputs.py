"""The tables and figures that a run writes into its folder when it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vipbench import files
from vipbench.errors import UsageError, printable
from vipbench.results.records.cells import Cells, cells_of
from vipbench.results.selection import Selection
from vipbench.results.store.store import Store
from vipbench.results.tables import Table, TableError, render
from vipbench.results.tables.layout import Layout, lay_out
from vipbench.results.tables.presets import preset
from vipbench.runspec.outputs import FigureOutput, TableOutput
from vipbench.runspec.run import RunSpec
from vipbench.text import clean

FORMS = {".md": "github", ".tex": "latex"}
FILES = {"table.md": "github", "table.tex": "latex"}


def save_tables(folder: Path, title: str | None) -> str:
    """Write table.md, table.tex and results.csv of a results folder; returns the table for a
    terminal. Raises TableError, StoreError, OSError."""
    with Store(folder, readonly=True) as store:
        table = _folder_table(store, title)
        for name, form in FILES.items():
            text = render(table, form)
            _write(folder / name, text if text.endswith("\n") else f"{text}\n")
        store.export_csv(folder / "results.csv")
    return render(table, "text").rstrip("\n")


def _folder_table(store: Store, title: str | None) -> Table:
    """All that the folder was asked for; where that mixes what cannot stand in one table, what
    the last run asked for."""
    # The files may be moved with their folder: they name it, and no path to it.
    name = store.out_dir.name
    try:
        return _default_table(cells_of(*store.pooled(), name), title)
    except TableError:
        return _default_table(cells_of(*store.pooled(planned=store.plan(latest=True)), name), title)


def _default_table(cells: Cells, title: str | None) -> Table:
    return lay_out(cells, Layout(title=title))


def save_outputs(spec: RunSpec) -> tuple[list[str], list[str]]:
    """Write `spec.tables` and `spec.figures` into its folder; returns the names of the files, and
    why those were not written that these results cannot carry (too few seeds for an interval,
    say). Raises StoreError, OSError."""
    made: list[str] = []
    refused: list[str] = []
    if not spec.tables and not spec.figures:
        return made, refused
    with Store(spec.out, readonly=True) as store:
        outputs: list[TableOutput | FigureOutput] = [*spec.tables, *spec.figures]
        for output in outputs:
            try:
                cells = Selection().cells(store, spec.out.name)
                if isinstance(output, TableOutput):
                    made += _table(spec, output, cells, store)
                else:
                    made += _figure(spec, output, cells, store)
            except (TableError, UsageError) as error:
                what = "table" if isinstance(output, TableOutput) else "figure"
                refused.append(f"no {what} '{output.name}': {clean(str(error))}")
    return made, refused


def _table(spec: RunSpec, output: TableOutput, cells: Cells, store: Store) -> list[str]:
    chosen: dict[str, Any] = {"metrics": output.metrics} if output.metrics else {}
    layout = Layout(
        aggregate=output.aggregate,
        highlight=output.highlight,
        average=output.average,
        title=spec.title,
        **chosen,
    )
    if output.preset is not None:
        given = [*chosen, *(["average"] if output.average else [])]
        cells, layout = preset(output.preset, cells, layout, given)
    table = lay_out(cells, layout, store.predictions)
    return [_write(spec.out / f"{output.name}{end}", render(table, f)) for end, f in FORMS.items()]


def _figure(spec: RunSpec, output: FigureOutput, cells: Cells, store: Store) -> list[str]:
    from vipbench.results.figures import SUFFIXES, draw, save

    figure, caption = draw(
        output.kind, cells, store.predictions, output.metric, output.aggregate, spec.title
    )
    files = [save(figure, spec.out / f"{output.name}{suffix}").name for suffix in SUFFIXES]
    return [*files, _write(spec.out / f"{output.name}.txt", f"{caption}\n")]


def _write(path: Path, text: str) -> str:
    files.write(path, printable(text))
    return path.name
