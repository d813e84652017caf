"""`vipbench work`: the options."""

from __future__ import annotations

from typing import Annotated

import typer

from vipbench.cli.options import Run


def work(
    folder: Run,
    part: Annotated[
        int, typer.Option("--part", metavar="N", help="The part's number.", show_default=False)
    ],
) -> int:
    """Run one part of a run that was cut, on this machine; what is done is not run again.

    Batch jobs call it. Exit status 0 done, 1 some cells failed, 3 not to be started again as it is,
    75 the time is over and cells are left.
    """
    from vipbench.cli.commands.parts import work_command

    return work_command(folder, part)
