"""`vipbench show`: the options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def show(
    key: Annotated[
        str, typer.Argument(metavar="KEY", show_default=False, help="A key, or how it begins.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A results folder.")] = Path(
        "vipbench-results"
    ),
    format: Annotated[
        str, typer.Option("--format", metavar="text|json", help="The form.")
    ] = "text",
) -> int:
    """Print a record whole, with its errors class by class."""
    from vipbench.cli.commands.show import show_command

    return show_command(key, folder, format)
