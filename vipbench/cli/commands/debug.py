"""`vipbench run --debug`: one cell in the foreground."""

from __future__ import annotations

import sys
import traceback

from vipbench.cli.exit_codes import FAILED, OK
from vipbench.errors import UsageError
from vipbench.results.records.metrics import METRICS
from vipbench.results.records.plan import PlannedCell
from vipbench.runspec.run import RunSpec
from vipbench.text import plural


def debug_command(spec: RunSpec, post_mortem: bool) -> int:
    """Run the first possible cell of `spec` in this process; nothing is kept but encoded images.

    post_mortem: whether a failure ends in the debugger. Raises UsageError.
    """
    from vipbench.engine.workers.messages import Event, Note, Plan
    from vipbench.engine.workers.session import Session

    cells: list[PlannedCell] = []

    def show(event: Event) -> None:
        if isinstance(event, Plan):
            cells.extend(event.cells)
        elif isinstance(event, Note):
            print(f"note: {event.text}")

    session = Session(show)
    session.plan(spec)
    possible = [cell for cell in cells if cell.status != "impossible"]
    if not possible:
        reasons = "; ".join(dict.fromkeys(cell.reason or "" for cell in cells))
        raise UsageError(f"none of the {plural(len(cells), 'cell')} can be run: {reasons}")
    cell = possible[0]
    print(
        f"{cell.words()} (the first of {plural(len(possible), 'selected cell')}), "
        f"plugin '{cell.plugin}' ({cell.file})"
    )
    try:
        finished = session.run_alone(cell.key)
    except Exception:
        traceback.print_exc()
        if post_mortem:
            import pdb

            pdb.post_mortem()
        else:
            print("vipbench: --pdb opens the debugger at the error", file=sys.stderr)
        return FAILED
    for name in METRICS:
        value = finished.record.metrics.get(name)
        if isinstance(value, float):
            print(f"{name}: {value:.4f}")
    print("No result was saved.")
    return OK
