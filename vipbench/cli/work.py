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
    """Run one part of a divided run on this machine; finished cells are not rerun.

    Batch jobs call it. Exit status: 0 done, 1 some cells failed, 3 cannot run as it is (do not
    requeue), 75 the job's time is over and cells remain.
    """
    from vipbench.cli.commands.parts import work_command

    return work_command(folder, part)
