"""`vipbench import`: the options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vipbench.cli.options import OutFolder


def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", show_default=False, help="An exported file.")
    ],
    out: OutFolder,
    submitter: Annotated[
        str,
        typer.Option(
            "--submitter", metavar="NAME", show_default=False, help="Who submitted the records."
        ),
    ],
) -> int:
    """Import records that others exported.

    Each record is checked: schema, hash, and that its metrics follow from its scores. Results that
    differ from existing ones are kept beside them; see merge.
    """
    from vipbench.cli.commands.import_ import import_command

    return import_command(file, out, submitter)
