"""`vipbench leaderboard`: the options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vipbench.cli.options import Folders


def leaderboard(
    folders: Folders,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="DIR", help="Where index.html is written."),
    ] = Path("site"),
    title: Annotated[
        str, typer.Option("--title", metavar="TEXT", help="The page's heading.")
    ] = "Leaderboard",
) -> int:
    """Write a leaderboard: one page that needs no network, for a browser."""
    from vipbench.cli.commands.leaderboard import leaderboard_command

    return leaderboard_command(folders, out, title)
