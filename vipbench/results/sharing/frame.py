"""Records as a pandas DataFrame."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import pandas as pd

from vipbench.results.records.csv import RECORD_COLUMNS, record_row
from vipbench.results.records.metrics import METRICS
from vipbench.results.records.plan import PlannedCell
from vipbench.results.records.record import Record
from vipbench.results.store.store import Store

_FLOATS = [m.name for m in METRICS.values() if not m.per_class]


def load_results(
    folder: str | os.PathLike[str],
    superseded: bool = False,
    folds: bool = False,
    planned: Sequence[PlannedCell] | None = None,
) -> pd.DataFrame:
    """One row a record of a results folder, in the order of their adding; see `frame`. The folds of
    a dataset are one row, with the metrics of their pooled predictions; with `folds` a row each.
    Records that tables leave out, as another took their place, are left out; with `superseded` they
    are there, and a boolean column `superseded` tells them. planned: only the records of these
    cells. Raises StoreError."""
    with Store(folder, readonly=True) as store:
        gone = store.superseded()
        if folds:
            asked = {cell.key for cell in planned or ()}
            every = store.records(history=False)
            records = [r for r in every if planned is None or r.key in asked]
        else:
            records = store.pooled((), planned, others=planned is None)[0]
    if not superseded:
        return frame(record for record in records if record.key not in gone)
    found = frame(records)
    found["superseded"] = found["key"].isin(gone)
    return found


def frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row a record, in the columns of the CSV file (export.RECORD_COLUMNS).

    Metrics are fractions, NaN where undefined or failed; `sensitivity` and `specificity` are dicts
    by class, `hparams`, `recipe`, `protocol` and `timing` dicts; `shots` is a number or "full";
    `created` a time.
    """
    found = pd.DataFrame([record_row(record) for record in records], columns=RECORD_COLUMNS)
    found[_FLOATS] = found[_FLOATS].astype("float64")
    found["n"] = found["n"].astype("Int64")
    found["created"] = pd.to_datetime(found["created"], utc=True, format="ISO8601")
    return found
