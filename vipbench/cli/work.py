"""`vipbench work`: the options."""

from __future__ import annotations

from typing import Annotated

import typer

from vipbench.cli.options import Run
from vipbench.errors import UsageError


def work(
    folder: Run,
    part: Annotated[
        int | None,
        typer.Option("--part", metavar="N", help="The part's number.", show_default=False),
    ] = None,
    encode: Annotated[
        int | None,
        typer.Option(
            "--encode",
            metavar="N",
            help="Instead of a part, encode the images of one backbone and dataset for all parts.",
            show_default=False,
        ),
    ] = None,
) -> int:
    """Run one part of a divided run on this machine; finished cells are not rerun.

    Batch jobs call it. Exit status: 0 done, 1 some cells failed, 3 it cannot run (do not requeue),
    75 the job's time is over and cells remain.
    """
    from vipbench.cli.commands.parts import work_command

    if (number := encode if part is None else part) is None or None not in (part, encode):
        raise UsageError("expected either --part N or --encode N")
    return work_command(folder, number, part is None)
