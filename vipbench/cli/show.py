"""`vipbench show`: the options."""

from __future__ import annotations

from typing import Annotated

import typer

from vipbench.cli.options import DEFAULT_FOLDER, DefaultFolder, option


def show(
    key: Annotated[
        str, typer.Argument(metavar="KEY", show_default=False, help="A key or its beginning.")
    ],
    folder: DefaultFolder = DEFAULT_FOLDER,
    format: Annotated[str, option("--format", "text|json", "Output format.")] = "text",
) -> int:
    """Show one record in full, with errors per class."""
    from vipbench.cli.commands.show import show_command

    return show_command(key, folder, format)
