"""`vipbench prompts`: write learned prompts to files."""

from __future__ import annotations

import sys
from pathlib import Path

from vipbench.cli.commands.predict import CAUTION
from vipbench.cli.exit_codes import OK
from vipbench.engine.explain.exported import INDEX, export
from vipbench.errors import UsageError
from vipbench.text import clean, plural


def prompts_command(run: Path, out: Path, patient_data: bool) -> int:
    """Write the prompt files."""
    made = export(run, out, patient_data)
    if made.private:
        print(
            "note: not written, because they may hold features of single images: "
            f"{clean('; '.join(made.private))}"
            " (--patient-data writes them, marked contains-patient-data)",
            file=sys.stderr,
        )
    for cell in made.lost:
        print(f"note: not written: {clean(cell)}", file=sys.stderr)
    if not (made.files or made.private or made.lost):
        raise UsageError(f"{run} contains no finished cell with learned parameters")
    if not made.files:
        print(f"No prompt file was written into {out}.")
        return OK
    count = plural(len(made.files), "prompt file")
    print(f"{count} with cards in {out}, listed in {out / INDEX}. {CAUTION}")
    return OK
