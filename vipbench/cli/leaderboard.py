"""`vipbench leaderboard`: the options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from vipbench.cli.options import Folders, option, out


def leaderboard(
    folders: Folders,
    out: Annotated[Path, out("DIR", "Where index.html is written. [site]")] = Path("site"),
    title: Annotated[str, option("--title", "TEXT", "The page's heading.")] = "Leaderboard",
) -> int:
    """Write a leaderboard: one page that needs no network, for a browser."""
    from vipbench.cli.commands.leaderboard import leaderboard_command

    return leaderboard_command(folders, out, title)
