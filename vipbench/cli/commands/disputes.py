"""Cells whose submissions differ, in words."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

from vipbench.results.records.metrics import metric_value
from vipbench.results.records.record import Record
from vipbench.results.store.store import Store
from vipbench.results.store.submissions import device, submitter
from vipbench.text import clean, plural

MOST_SHOWN = 20


def tell_disputes(store: Store, out: TextIO | None = None) -> None:
    """Print the cells in dispute with the results submitted for each, by default on standard error;
    nothing where there are none."""
    out = out or sys.stderr
    open_ = store.disputed()
    if not open_:
        return
    several = store.submissions()
    for key in open_[:MOST_SHOWN]:
        print(f"  {dispute_text([record for _, record in several[key]])}", file=out)
    if len(open_) > MOST_SHOWN:
        print(f"  and {len(open_) - MOST_SHOWN:,} more", file=out)
    print(
        f"{plural(len(open_), 'cell')} in dispute: tables show none of the results until "
        f"`vipbench merge --out {store.out_dir} --prefer SUBMITTER` chooses",
        file=out,
    )


def dispute_text(records: Sequence[Record]) -> str:
    """One cell and the results submitted for it, with the spread."""
    values = [metric_value(record.metrics, "accuracy") for record in records]
    parts = [
        f"{100 * value:.2f} ({submitter(record)}, {device(record)})"
        for record, value in zip(records, values, strict=True)
        if value is not None
    ]
    known = [value for value in values if value is not None]
    spread = 100 * (max(known) - min(known))
    return clean(f"{records[0].cell.words()}: accuracy {' | '.join(parts)}; spread {spread:.2f}")
