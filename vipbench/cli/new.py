"""`vipbench new`: the options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def new(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="method|dataset|backbone", show_default=False, help="Kind of plugin."
        ),
    ],
    name: Annotated[
        str, typer.Argument(metavar="NAME", show_default=False, help="Name on the command line.")
    ],
    folder: Annotated[
        Path, typer.Option("--plugins-dir", metavar="DIR", help="Output folder.")
    ] = Path(),
) -> int:
    """Write a working plugin file to start from."""
    from vipbench.cli.commands.new import new_command

    return new_command(kind, name, folder)
