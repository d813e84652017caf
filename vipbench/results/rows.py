"""The rows of `records` and of what hangs on them. No torch here."""

from __future__ import annotations

import sqlite3
from typing import Any, NamedTuple

from vipbench.results import packing
from vipbench.results.predictions import Predictions, check_together
from vipbench.results.record import Record


class Row(NamedTuple):
    """One row of `records`."""

    id: int
    key: str
    status: str
    json: str
    history_sha256: str
    predictions_sha256: str | None
    sha256: str

    @classmethod
    def of(cls, id: int, record: Record, predictions_sha256: str | None) -> tuple[Row, str]:
        """The row, and the history that is kept beside it."""
        text, history = record.to_json_parts()
        history_sha256 = packing.sha256(history)
        told = (id, record.key, record.status, text, history_sha256, predictions_sha256)
        return cls(*told, sha256=packing.row_hash(*told)), history


COLUMNS = ", ".join(Row._fields)


NOTHING: dict[str, Any] = {"count": 0, "xor": "0" * 64}


def count(counted: dict[str, Any], row: Row, change: int) -> dict[str, Any]:
    """What is known of all rows together, with `row` added (change 1) or taken away (-1)."""
    return {
        "count": counted["count"] + change,
        "xor": packing.xor(counted["xor"], row.sha256),
    }


def write(db: sqlite3.Connection, id: int, record: Record, predictions: Predictions | None) -> Row:
    """Write a record under the number `id`, in the place of what was there, and return its row.
    Raises RecordError where record and predictions do not belong together."""
    packed = None
    if predictions is not None:
        check_together(record, predictions)
        packed = packing.pack(predictions)
    row, history = Row.of(id, record, packed.sha256 if packed else None)
    db.execute(f"INSERT OR REPLACE INTO records ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    db.execute("INSERT OR REPLACE INTO histories VALUES (?, ?)", (id, history))
    if packed is not None:
        packed.insert(db, id)
    return row


def describe(record: Record) -> str:
    """A record's place in the grid, in words."""
    c = record.cell
    return f"{c.method} on {c.dataset}, {c.backbone}, shots {c.shots}, seed {c.seed}"
