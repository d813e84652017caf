"""`vipbench collect`: the options."""

from __future__ import annotations

from typing import Annotated

import typer

from vipbench.cli.options import Run


def collect(
    folder: Run,
    follow: Annotated[
        bool, typer.Option("--follow", help="Continue until no job is left.")
    ] = False,
) -> int:
    """Collect the results of a run's parts in its results file.

    `vipbench run` (the same command), `status` and `table` do so, too.
    """
    from vipbench.cli.commands.parts import collect_command

    return collect_command(folder, follow)
