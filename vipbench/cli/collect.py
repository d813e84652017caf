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
    """Collect the results of a run's parts into its results folder.

    `status`, `table` and the same `vipbench run` command collect them, too.
    """
    from vipbench.cli.commands.parts import collect_command

    return collect_command(folder, follow)
