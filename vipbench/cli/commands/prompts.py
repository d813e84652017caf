"""`vipbench prompts`: write learned prompts to files."""

from __future__ import annotations

import sys
from pathlib import Path

from vipbench.cli.commands.predict import CAUTION
from vipbench.cli.exit_codes import OK
from vipbench.engine.explain.prompt_files import export
from vipbench.errors import UsageError
from vipbench.text import clean


def prompts_command(run: Path, out: Path, patient_data: bool) -> int:
    """Write the prompt files."""
    made, left = export(run, out, patient_data)
    if left:
        print(
            f"note: left out, as they may hold features of single images: {clean('; '.join(left))}"
            " (--patient-data writes them, marked contains-patient-data)",
            file=sys.stderr,
        )
    if not made and not left:
        raise UsageError(f"{run} holds no finished cell with learned parameters")
    print(f"{len(made)} prompt files with cards in {out}. {CAUTION}")
    return OK
