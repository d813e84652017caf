"""`vipbench dataset split`: a drawn split as a file."""

from __future__ import annotations

from pathlib import Path

from vipbench.cli import OK
from vipbench.cli.text import columns, plural
from vipbench.errors import UsageError


def split_command(
    source: str, root: Path | None, group: str | None, ratios: str, seed: int, out: Path | None
) -> int:
    """Write the split and say how many images it has. Raises UsageError."""
    from vipbench.api import DataError
    from vipbench.datasets.write_split import parse_ratios, write_split

    try:
        written = write_split(source, root, group, parse_ratios(ratios), seed, out)
    except DataError as error:
        raise UsageError(str(error)) from None
    for line in columns(
        [["class", "train", "val", "test"], *([name, *n] for name, n in written.counts.items())]
    ):
        print(line)
    groups = "" if written.groups is None else f", {plural(written.groups, 'group')}"
    print(f"Wrote {written.path}{groups}; use it as csv:{written.path}")
    return OK
