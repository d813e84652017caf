"""`vipbench leaderboard`: the options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from vipbench.cli.options import Folders, option, out


def leaderboard(
    folders: Folders,
    out: Annotated[Path, out("DIR", "Output folder of index.html. [site]")] = Path("site"),
    title: Annotated[str, option("--title", "TEXT", "Heading of the page.")] = "Leaderboard",
) -> int:
    """Write a leaderboard as one self-contained HTML page."""
    from vipbench.cli.commands.leaderboard import leaderboard_command

    return leaderboard_command(folders, out, title)
