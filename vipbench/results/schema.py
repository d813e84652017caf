"""The layout of results.sqlite: creation, versions, and what marks a file as ours. No torch here.

records      one row a cell, numbered in the order of adding; `json` is the record without its
             history, `sha256` covers the row. A key has several rows where others' results of it
             differ
histories    each record's `history`, apart: it is most of a record's size, and no table needs it
predictions  one row a cell that has them: scores (N,C) float32, little-endian, zlib
parameters   what a cell's method learned: a safetensors file, where the record tells of one
testsets     the ids, groups and labels that many cells share, kept once, named by their SHA-256
meta         `records`: how many rows there are and the XOR of their hashes, so that a row which
             damage made vanish is missed; `plan`: the cells that were asked for; `choices`:
             which row stands for a key that has several
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

VERSION = 3
# The oldest layout that can be read as it is.
READABLE = 1
APPLICATION_ID = 0x76697062  # "vipb"

_PARAMETERS = """CREATE TABLE parameters (
        id INTEGER PRIMARY KEY REFERENCES records (id),
        data BLOB NOT NULL
    ) STRICT"""

# No index but SQLite's own of row numbers: damage to another would hide a row that is whole. Who
# looks for a key has read all rows and knows its number.
_TABLES = (
    """CREATE TABLE records (
        id INTEGER PRIMARY KEY,
        key TEXT NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('ok', 'error')),
        json TEXT NOT NULL,
        history_sha256 TEXT NOT NULL,
        predictions_sha256 TEXT,
        sha256 TEXT NOT NULL
    ) STRICT""",
    """CREATE TABLE histories (
        id INTEGER PRIMARY KEY REFERENCES records (id),
        json TEXT NOT NULL
    ) STRICT""",
    """CREATE TABLE predictions (
        id INTEGER PRIMARY KEY REFERENCES records (id),
        testset INTEGER NOT NULL REFERENCES testsets (id),
        n INTEGER NOT NULL,
        classes INTEGER NOT NULL,
        scores BLOB NOT NULL
    ) STRICT""",
    """CREATE TABLE testsets (
        id INTEGER PRIMARY KEY,
        sha256 TEXT NOT NULL,
        size INTEGER NOT NULL,
        json BLOB NOT NULL
    ) STRICT""",
    _PARAMETERS,
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL, sha256 TEXT NOT NULL) STRICT",
)


def _add_parameters(db: sqlite3.Connection) -> None:
    db.execute(_PARAMETERS)


# version -> what brings a file of that version to the next one, inside a transaction.
MIGRATIONS: dict[int, Callable[[sqlite3.Connection], None]] = {
    # Since layout 2 a key may have several rows, of which an older reader would show any one.
    1: lambda db: None,
    2: _add_parameters,
}


def create(db: sqlite3.Connection) -> None:
    """Lay out an empty file, inside the caller's transaction."""
    for statement in _TABLES:
        db.execute(statement)
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {VERSION}")


def migrate(db: sqlite3.Connection, found: int) -> None:
    """Bring a file of version `found` to VERSION, inside the caller's transaction."""
    for version in range(found, VERSION):
        MIGRATIONS[version](db)
    db.execute(f"PRAGMA user_version = {VERSION}")


def layout(db: sqlite3.Connection) -> tuple[int, int]:
    """(application id, version) as the file's header gives them."""
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    return application, version
