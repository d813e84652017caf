"""`vipbench plot`: a figure of a results folder."""

from __future__ import annotations

from pathlib import Path

from vipbench.cli.exit_codes import OK
from vipbench.errors import UsageError, unknown
from vipbench.results.results import folder_figure
from vipbench.results.selection import Selection


def plot_command(
    folder: Path, kind: str, out: Path | None, metric: str, aggregate: str | None, chosen: Selection
) -> int:
    """Write the figure and print its caption. Raises UsageError, StoreError, OSError."""
    from vipbench.results.figures import KINDS, SUFFIXES, save

    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    file = folder / f"{kind}.pdf" if out is None else out
    if file.suffix.lower() not in SUFFIXES:
        raise UsageError(f"'{file}': a figure's file ends in {', '.join(SUFFIXES)}")
    figure, caption = folder_figure(folder, kind, metric, aggregate, chosen)
    print(f"{caption}\n\nSaved as {save(figure, file)}")
    return OK
