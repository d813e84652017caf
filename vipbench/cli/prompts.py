"""`vipbench prompts`: the options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vipbench.cli.options import AllowCode, Run, out


def prompts(
    run: Run,
    out: Annotated[Path, out("DIR", "Output folder. [prompts]")] = Path("prompts"),
    patient_data: Annotated[
        bool,
        typer.Option(
            "--patient-data", help="Also write parameters that may hold features of single images."
        ),
    ] = False,
    allow_code: AllowCode = False,
) -> int:
    """Write the learned parameters of every finished cell as a safetensors file with a card."""
    from vipbench.cli.commands.prompts import prompts_command

    return prompts_command(run, out, patient_data)
