"""`vipbench verify`: the options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from vipbench.cli.options import (
    DEFAULT_FOLDER,
    AllowCode,
    DefaultFolder,
    Tolerance,
    number,
    option,
    text,
)


def verify(
    folder: DefaultFolder = DEFAULT_FOLDER,
    again: Annotated[
        int, option("--rerun", "N", "Rerun N cells and compare.", number(0, 10**9))
    ] = 0,
    seed: Annotated[int, option("--seed", "N", "Seed of the draw of cells.")] = 0,
    tolerance: Tolerance = 1e-3,
    suite: Annotated[
        Path | None,
        text(
            "--suite",
            "FILE",
            "Suite with data and plugins. [the folder's suite.yaml]",
        ),
    ] = None,
    allow_code: AllowCode = False,
) -> int:
    """Check a folder's integrity and recompute metrics from scores.

    With --rerun, a random sample of cells is rerun in a temporary folder; each is identical, within
    the tolerance, or different. Exit status 1 if there are problems.
    """
    from vipbench.cli.commands.verify import verify_command
    from vipbench.runspec.run import RunSpec

    spec = None if suite is None else RunSpec.from_yaml(suite)
    return verify_command(folder, again, seed, spec, tolerance)
