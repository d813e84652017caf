"""The tables and figures that a suite names, written when its run ends."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from vipbench import files
from vipbench.cli.commands.selection import Selection
from vipbench.cli.commands.text import clean
from vipbench.errors import UsageError, printable
from vipbench.results.records.cells import Cells
from vipbench.results.store.store import Store
from vipbench.results.tables import TableError, render
from vipbench.results.tables.layout import Layout, lay_out
from vipbench.results.tables.presets import preset
from vipbench.runspec.outputs import FigureOutput, TableOutput
from vipbench.runspec.run import RunSpec

FORMS = {".md": "github", ".tex": "latex"}


def save_outputs(spec: RunSpec) -> list[str]:
    """Write `spec.tables` and `spec.figures` into its folder; returns the names of the files.

    What these results cannot carry (too few seeds for an interval, say) is printed to stderr; the
    others are written. Raises StoreError, OSError.
    """
    if not spec.tables and not spec.figures:
        return []
    made: list[str] = []
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
                print(f"vipbench: no {what} '{output.name}': {clean(str(error))}", file=sys.stderr)
    return made


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
