"""What a table must say of a row that was run under its own paper's protocol."""

from __future__ import annotations

from vipbench.engine.planning import PlanCell
from vipbench.spec import RunSpec

_VALIDATION = {
    "none": "no validation image",
    "k": "k validation images a class for k shots",
    "min(k,4)": "min(k,4) validation images a class for k shots",
    "full": "the whole validation split",
}
_SELECTION = {
    "last": "the last step is scored",
    "best_val": "the epoch that is best on validation is scored",
}


def profile_note(spec: RunSpec, cell: PlanCell) -> str:
    """A footnote for the cell's row; "" where the profile gives none a protocol of its own.

    It belongs to the run, not to the record: the same record may stand in a table of one protocol
    for all rows.
    """
    if spec.profile != "published" or not cell.row.method.uses_support:
        return ""
    told = f"{_VALIDATION[cell.protocol.validation]}, {_SELECTION[cell.protocol.selection]}"
    views = "" if spec.views == "per-epoch" else f"; training views are the run's ({spec.views})"
    return f"as in its paper (profile published): {told}{views}"
