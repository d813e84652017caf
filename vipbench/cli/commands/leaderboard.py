"""`vipbench leaderboard`: one page of everything that some folders hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vipbench.cli.exit_codes import OK
from vipbench.results.leaderboard.page import save_leaderboard
from vipbench.text import plural


def leaderboard_command(folders: Sequence[Path], out: Path, title: str) -> int:
    """Write OUT/index.html. Raises UsageError, StoreError."""
    made = save_leaderboard(folders, out, title)
    size = made.path.stat().st_size / 1e6
    print(f"{made.path}: {plural(made.rows, 'row')}, {plural(made.cells, 'cell')}, {size:.1f} MB")
    if made.disputed:
        print(
            f"note: submissions of {plural(made.disputed, 'cell')} differ; they show their "
            "spread and are not ranked until `vipbench merge --prefer` chooses"
        )
    return OK
