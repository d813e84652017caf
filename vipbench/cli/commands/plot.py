"""`vipbench plot`: a figure of a results folder."""

from __future__ import annotations

from pathlib import Path

from vipbench.cli.commands.selection import Selection, opened, title_of
from vipbench.cli.exit_codes import OK
from vipbench.errors import UsageError, unknown
from vipbench.results.tables.table import SPREADS


def plot_command(
    folder: Path, kind: str, out: Path | None, metric: str, aggregate: str | None, chosen: Selection
) -> int:
    """Write the figure and print its caption. Raises UsageError, StoreError, OSError."""
    from vipbench.results.figures import KINDS, SUFFIXES, draw, save

    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    if aggregate is not None and aggregate not in SPREADS:
        raise unknown("aggregate", aggregate, SPREADS)
    file = folder / f"{kind}.pdf" if out is None else out
    if file.suffix.lower() not in SUFFIXES:
        raise UsageError(f"'{file}': a figure's file ends in {', '.join(SUFFIXES)}")
    with opened(folder) as store:
        cells = chosen.cells(store)
        figure, caption = draw(kind, cells, store.predictions, metric, aggregate, title_of(folder))
    print(f"{caption}\n\nSaved as {save(figure, file)}")
    return OK
