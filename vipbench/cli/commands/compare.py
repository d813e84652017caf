"""`vipbench compare`: one method against others, in sentences."""

from __future__ import annotations

from pathlib import Path

from vipbench.cli.exit_codes import OK
from vipbench.errors import UsageError, unknown
from vipbench.results.compare.claims import compare
from vipbench.results.compare.sentences import CLAIM_FORMATS, write_claims
from vipbench.results.selection import Selection, labels, opened


def compare_command(
    a: str,
    b: str,
    folder: Path,
    metric: str,
    chosen: Selection,
    population: str,
    level: float,
    format: str,
) -> int:
    """Print the comparisons. Raises UsageError, StoreError."""
    if format not in CLAIM_FORMATS:
        raise unknown("format", format, CLAIM_FORMATS)
    others = () if b == "all" else labels(b)
    if b != "all" and not others:
        raise UsageError("expected the label of another method, or all")
    with opened(folder) as store:
        found = compare(
            chosen.cells(store),
            store.predictions,
            a,
            others,
            metrics=labels(metric),
            population=population,
            level=level,
        )
    print(write_claims(found, format).rstrip("\n"))
    return OK
