"""`vipbench new`: the options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def new(
    kind: Annotated[
        str,
        typer.Argument(metavar="method|dataset|backbone", show_default=False, help="Of what."),
    ],
    name: Annotated[
        str, typer.Argument(metavar="NAME", show_default=False, help="Its command-line word.")
    ],
    folder: Annotated[
        Path, typer.Option("--plugins-dir", metavar="DIR", help="Where the file is written.")
    ] = Path(),
) -> int:
    """Write a plugin file that keeps every rule, to start from."""
    from vipbench.cli.commands.new import new_command

    return new_command(kind, name, folder)
