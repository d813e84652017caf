"""`vipbench reproduce`: the options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vipbench.cli.options import AllowCode, DataRoot, OutFolder, Tolerance, text


def reproduce(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", show_default=False, help="What export made.")
    ],
    out: OutFolder,
    data_root: DataRoot = None,
    datasets: Annotated[
        list[str] | None,
        text(
            "--dataset",
            "NAME=SOURCE",
            "Your copy of a dataset that came from a path; repeatable.",
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="The same as --allow-code.", show_default=False)
    ] = False,
    tolerance: Tolerance = 1e-3,
    allow_code: AllowCode = False,
) -> int:
    """Make a bundle's run again and compare each cell.

    The bundle is unpacked into OUT/bundle, checked file by file. Exit status 1 where a cell is
    different or could not be made.
    """
    from vipbench.cli.commands.reproduce import reproduce_command

    return reproduce_command(bundle, out, data_root, datasets or (), yes, tolerance)
