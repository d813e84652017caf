"""`vipbench status`: the options."""

from __future__ import annotations

from typing import Annotated

import typer

from vipbench.cli.options import Run


def status(
    folder: Run,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Show the progress of a run on a cluster: one line for all, then each part.

    Exit status: 0 done, 1 cells failed or parts ended without all results, 3 running.
    """
    from vipbench.cli.commands.parts import status_command

    return status_command(folder, as_json)
