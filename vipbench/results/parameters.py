"""Learned parameters beside a record: a safetensors file as it is. No torch here.

The record's `provenance.parameters.sha256` says which bytes they are, so that the row of the
record, which is checked as a whole, covers them too.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from vipbench.results.database import damaged, explained
from vipbench.results.packing import sha256
from vipbench.results.record import Record, RecordError


def told_sha256(record: Record) -> str | None:
    """The digest of the parameters that the record says there are; None where it says none."""
    told = record.provenance.get("parameters")
    found = told.get("sha256") if isinstance(told, dict) else None
    return found if isinstance(found, str) else None


def write(db: sqlite3.Connection, id: int, record: Record, data: bytes) -> None:
    """Keep `data` as record `id`'s parameters. Raises RecordError where the record tells of
    others."""
    if told_sha256(record) != sha256(data):
        raise RecordError(
            f"record {record.key}: provenance.parameters.sha256 is {told_sha256(record)}, the "
            f"parameters given with it have {sha256(data)}"
        )
    db.execute("INSERT OR REPLACE INTO parameters VALUES (?, ?)", (id, data))


def read(db: sqlite3.Connection, path: Path, id: int, record: Record) -> bytes | None:
    """Record `id`'s parameters, checked; None where there are none. Raises StoreError."""
    told = told_sha256(record)
    if told is None:
        return None
    with explained(path):
        found = db.execute("SELECT data FROM parameters WHERE id = ?", (id,)).fetchone()
    if found is not None and sha256(bytes(found[0])) != told:
        raise damaged(path, f"the parameters of record {record.key} were altered")
    return None if found is None else bytes(found[0])
