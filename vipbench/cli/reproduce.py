"""`vipbench reproduce`: the options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vipbench.cli.options import AllowCode, DataRoot, OutFolder, Tolerance, text


def reproduce(
    bundle: Annotated[
        Path,
        typer.Argument(metavar="BUNDLE", show_default=False, help="A bundle written by export."),
    ],
    out: OutFolder,
    data_root: DataRoot = None,
    datasets: Annotated[
        list[str] | None,
        text(
            "--dataset",
            "NAME=SOURCE",
            "Your copy of a dataset given by a path; repeatable.",
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="The same as --allow-code.", show_default=False)
    ] = False,
    tolerance: Tolerance = 1e-3,
    allow_code: AllowCode = False,
) -> int:
    """Rerun a bundle and compare each cell.

    The bundle is checked and unpacked into OUT/bundle. Exit status 1 if a cell differs or could
    not be run.
    """
    from vipbench.cli.commands.reproduce import reproduce_command

    return reproduce_command(bundle, out, data_root, datasets or (), yes, tolerance)
