"""`vipbench merge`: the options."""

from __future__ import annotations

from typing import Annotated

import typer

from vipbench.cli.options import OutFolder, option


def merge(
    out: OutFolder,
    folders: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=]DIR...", show_default=False, help="Results folders, and whose they are."
        ),
    ] = None,
    prefer: Annotated[
        str | None,
        option("--prefer", "NAME[@DEVICE]", "Whose results stand where several differ."),
    ] = None,
) -> int:
    """Put the records of several folders together.

    The same cell with other scores is kept once for each who handed it in. Their spread is shown,
    they are never averaged, and tables leave the cell open until --prefer chooses.
    """
    from vipbench.cli.commands.merge import merge_command

    return merge_command(folders or (), out, prefer)
