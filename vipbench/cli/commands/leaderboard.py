"""`vipbench leaderboard`: one page of everything that some folders hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vipbench.cli.commands.text import plural
from vipbench.cli.exit_codes import OK
from vipbench.errors import UsageError
from vipbench.results.leaderboard.entries import leaderboard
from vipbench.results.leaderboard.gather import Folders
from vipbench.results.leaderboard.page import render_page, write_page


def leaderboard_command(folders: Sequence[Path], out: Path, title: str) -> int:
    """Write OUT/index.html. Raises UsageError, StoreError."""
    with Folders(folders) as opened:
        found = opened.gather()
        entries = leaderboard(found)
    if not entries:
        raise UsageError(
            f"there are no records in {', '.join(map(str, folders))}; `vipbench run --out DIR` "
            "makes some"
        )
    try:
        path = write_page(out, render_page(entries, title))
    except FileExistsError as error:
        if error.filename:
            raise
        raise UsageError(str(error)) from None
    records = sum(len(e.records) + len(e.failed) + len(e.disputed) for e in entries)
    size = path.stat().st_size / 1e6
    print(f"{path}: {plural(len(entries), 'row')}, {plural(records, 'cell')}, {size:.1f} MB")
    if found.disputed:
        print(
            f"note: submissions of {plural(len(found.disputed), 'cell')} differ; they show their "
            "spread and are not ranked until `vipbench merge --prefer` chooses"
        )
    return OK
