"""`vipbench verify`: the options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from vipbench.cli.options import AllowCode, Folder, Tolerance, option, text


def verify(
    folder: Folder,
    again: Annotated[int, option("--rerun", "N", "Run N cells anew and compare.")] = 0,
    seed: Annotated[int, option("--seed", "N", "Which cells are drawn.")] = 0,
    tolerance: Tolerance = 1e-3,
    suite: Annotated[
        Path | None,
        text(
            "--suite",
            "FILE",
            "Where data and plugins are; by default the folder's own suite.yaml.",
        ),
    ] = None,
    allow_code: AllowCode = False,
) -> int:
    """Check that a folder is whole and that its metrics follow from its scores.

    With --rerun a random sample of its cells is run anew, in a temporary folder: each is identical,
    within the tolerance, or different. Exit status 1 where anything is not as it should be.
    """
    from vipbench.cli.commands.verify import verify_command
    from vipbench.runspec.run import RunSpec

    spec = None if suite is None else RunSpec.from_yaml(suite)
    return verify_command(folder, again, seed, spec, tolerance)
