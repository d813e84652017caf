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
            metavar="[NAME=]DIR...",
            show_default=False,
            help="Results folders, optionally with submitter names.",
        ),
    ] = None,
    prefer: Annotated[
        str | None,
        option("--prefer", "NAME[@DEVICE]", "Submitter whose results to use where they differ."),
    ] = None,
) -> int:
    """Merge the records of several folders.

    Results of one cell with different scores are kept once per submitter and never averaged. Their
    spread is shown, and tables leave the entry empty until --prefer chooses.
    """
    from vipbench.cli.commands.merge import merge_command

    return merge_command(folders or (), out, prefer)
