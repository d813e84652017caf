"""Opening results.sqlite: its schema, migrations, transactions and error messages."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vipbench.errors import one_line
from vipbench.files import NO_FILE, replacing
from vipbench.results.records.record import sha256
from vipbench.results.store.lock import StoreError

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


def create_tables(db: sqlite3.Connection) -> None:
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


# Begins a rollback journal, and ends one that names a super-journal.
JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")

# How long a reader or the writer waits for the other's transaction, in seconds.
PATIENCE = 60.0

WHAT_TO_DO = (
    "Restore it from a copy, or move it away and run again: its cells are then run anew. Nothing "
    "was changed."
)


def damaged(path: Path, what: str) -> StoreError:
    """The error for a file whose content is not what was written."""
    return StoreError(f"{path} is damaged: {what}. {WHAT_TO_DO}")


def _moved(path: Path) -> StoreError:
    return StoreError(
        f"'{path.parent}' is no longer there: the folder was moved or removed while it was "
        "written. Its results are intact; move it back, or give --out its new place, and run "
        "the same command again"
    )


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """SQLite's errors as StoreErrors that say what to do."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith("SQLITE_FULL"):
            text = (
                "no space left on the disk. Saved results are intact; free some space and run the "
                "same command again"
            )
        elif name.startswith("SQLITE_BUSY"):
            text = (
                f"it stayed locked by another program for {PATIENCE:.0f} s; close what has it open "
                f"and try again"
            )
        elif name == "SQLITE_READONLY_DBMOVED" or not path.parent.is_dir():
            raise _moved(path) from error
        elif name.startswith(("SQLITE_READONLY", "SQLITE_PERM", "SQLITE_CANTOPEN")):
            text = (
                f"it cannot be opened or written ({error}); check the permissions of the file and "
                f"its folder"
            )
        elif name.startswith("SQLITE_IOERR"):
            text = (
                f"reading or writing failed ({error}); check disk and space, then run the same "
                f"command again"
            )
        else:
            raise damaged(path, str(error)) from error
        raise StoreError(f"{path}: {text}") from error
    except UnicodeDecodeError as error:
        raise damaged(path, str(error)) from error
    except OSError as error:
        if not path.parent.is_dir():
            raise _moved(path) from error
        text = f"{error.strerror}; check the folder's permissions and space, then run again"
        raise StoreError(f"{path}: {text}") from error


@contextmanager
def transaction(
    db: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE"
) -> Iterator[sqlite3.Connection]:
    """All of the block or nothing of it. One that only reads may lie within another."""
    if begin == "BEGIN" and db.in_transaction:
        yield db
        return
    db.execute(begin)
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        # SQLite has rolled back by itself after some failures, a full disk among them.
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def create(path: Path) -> None:
    """Make an empty results file.

    It is laid out under another name first: a results file is whole from its first moment, so one
    of no size is damage and not a beginning.
    """
    with explained(path):
        # A journal whose file was removed would be rolled back into the new one.
        Path(f"{path}-journal").unlink(missing_ok=True)
        with replacing(path, "wb") as new:
            db = sqlite3.connect(new.name, isolation_level=None)
            try:
                db.execute("PRAGMA synchronous = FULL")
                with transaction(db):
                    create_tables(db)
                    put_meta(db, "records", {"count": 0, "xor": "0" * 64})
                    put_meta(db, "plan", {"runs": 0, "cells": []})
            finally:
                db.close()
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def connect(path: Path, readonly: bool) -> sqlite3.Connection:
    """Open a results file and check that it is one, is whole and has a layout that is known; for
    writing, bring an older layout up to date. Raises StoreError."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except FileNotFoundError:
        raise StoreError(
            f"{path}: no such file. Is this the output folder of a run? "
            f"`vipbench run --out {path.parent}` creates one"
        ) from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None
    if head != b"SQLite format 3\0":
        what = "is empty: it was cut short" if not head else "is not a results file"
        raise StoreError(f"{path} {what}. {WHAT_TO_DO}")
    with explained(path):
        # Opened for writing even to read: what a killed driver left half written has to be rolled
        # back before anyone reads. SQLite itself falls back where it may not write.
        mode = "ro" if _refuse_links(path, readonly) else "rw"
        uri = f"{path.absolute().as_uri()}?mode={mode}"
        db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=PATIENCE)
        try:
            _check_layout(db, path, readonly)
            if readonly:
                db.execute("PRAGMA query_only = ON")
            else:
                _prepare_writing(db)
        except BaseException as error:
            db.close()
            if isinstance(error, sqlite3.DatabaseError):
                _refuse_cut_short(path)
            raise
    return db


def _refuse_cut_short(path: Path) -> None:
    """A plainer word than SQLite's for a file that is shorter than its own header says."""
    with path.open("rb") as file:
        header = file.read(100)
    page_size = int.from_bytes(header[16:18], "big")
    expected = int.from_bytes(header[28:32], "big") * (65536 if page_size == 1 else page_size)
    size = path.stat().st_size
    if size < max(expected, 100):
        raise StoreError(f"{path} was cut short: {size} bytes of {expected}. {WHAT_TO_DO}")


def _check_layout(db: sqlite3.Connection, path: Path, readonly: bool) -> None:
    db.execute("PRAGMA cell_size_check = ON")
    # The first look at the file: SQLite compares its length with what its header says.
    application, version = layout(db)
    if application != APPLICATION_ID or version < 1:
        raise StoreError(f"{path} is an SQLite file, but not a results file. {WHAT_TO_DO}")
    if version > VERSION:
        raise StoreError(
            f"{path} has layout {version}, this vipbench reads up to {VERSION}: upgrade "
            f"vipbench, or give another output folder"
        )
    if readonly and version < READABLE:
        raise StoreError(
            f"{path} has the older layout {version}; `vipbench run` on this folder brings it to "
            f"layout {VERSION}"
        )
    _check_schema(db, path, version)


def _check_schema(db: sqlite3.Connection, path: Path, version: int) -> None:
    """Refuse a file that holds a trigger, a view, or anything else but the tables of its layout:
    such a thing would act while the file is read and written. Raises StoreError."""
    db.execute("PRAGMA trusted_schema = OFF")
    tables = [sql for sql in _TABLES if version > 2 or sql != _PARAMETERS]
    expected = {("table", sql.split()[2], " ".join(sql.split())) for sql in tables}
    expected.add(("index", "sqlite_autoindex_meta_1", ""))
    found = {
        (str(kind), str(name), " ".join(str(sql or "").split()))
        for kind, name, sql in db.execute("SELECT type, name, sql FROM sqlite_master")
    }
    for kind, name, _ in sorted(found - expected):
        raise StoreError(
            f"{path} holds the {one_line(kind)} '{one_line(name)}', which vipbench does not "
            f"create. Reading stopped there: get the file again from its author"
        )
    for _, name, _ in sorted(expected - found):
        raise damaged(path, f"the table '{name}' is missing")


def _refuse_links(path: Path, readonly: bool) -> bool:
    """Whether the file is a link or has a second name, which may be read but not written through;
    SQLite's own files beside it never. Raises StoreError."""
    for end in ("-journal", "-wal", "-shm"):
        beside = Path(f"{path}{end}")
        with suppress(FileNotFoundError):
            if _linked(beside):
                raise StoreError(f"{beside}: {NO_FILE}")
            if end == "-journal" and _names_another(beside):
                raise StoreError(
                    f"{beside} names a further file, which SQLite would remove; no journal of "
                    "vipbench does. Get the folder again from its author, or remove the journal"
                )
    linked = _linked(path)
    if linked and not readonly:
        raise StoreError(
            f"{path} is a link or has a second name: writing would change another file. Replace "
            f"it by a copy, or give another output folder"
        )
    return linked


def _linked(path: Path) -> bool:
    state = path.stat(follow_symlinks=False)
    return not stat.S_ISREG(state.st_mode) or state.st_nlink > 1


def _names_another(journal: Path) -> bool:
    """Whether a journal ends with the name of a super-journal, the file that SQLite removes once it
    has rolled back all databases of a transaction."""
    with journal.open("rb") as file:
        file.seek(max(0, journal.stat().st_size - len(JOURNAL_MAGIC)))
        return file.read() == JOURNAL_MAGIC


def _prepare_writing(db: sqlite3.Connection) -> None:
    # DELETE, not WAL: WAL keeps its index in memory shared between processes, which network file
    # systems do not give. FULL: a commit is on the disk when it returns.
    db.execute("PRAGMA journal_mode = DELETE")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = ON")
    _, version = layout(db)
    if version < VERSION:
        with transaction(db):
            migrate(db, version)


def read_all(db: sqlite3.Connection, path: Path, query: str) -> Iterator[Any]:
    """The rows of a query, which may hold no more than the file does: in a crafted one rows can
    share their pages, or come again and again. Raises StoreError."""
    (pages,), (size,) = (db.execute(f"PRAGMA page_{what}").fetchone() for what in ("count", "size"))
    left = pages * size
    for row in db.execute(query):
        left -= 1 + sum(len(value) for value in row if isinstance(value, str | bytes))
        if left < 0:
            raise damaged(path, "its rows are larger than the file")
        yield row


_META = {"records": {"count", "xor"}, "plan": {"runs", "cells"}}


def get_meta(db: sqlite3.Connection, path: Path, name: str) -> dict[str, Any]:
    """An entry of `meta`, checked. Raises StoreError."""
    row = db.execute("SELECT value, sha256 FROM meta WHERE name = ?", (name,)).fetchone()
    if row is None or sha256(f"{name}\n{row[0]}") != row[1]:
        raise damaged(path, f"its entry '{name}' was altered or is missing")
    with suppress(ValueError, RecursionError):
        value = json.loads(row[0])
        if isinstance(value, dict) and _META.get(name, set()) <= value.keys():
            return value
    raise damaged(path, f"its entry '{name}' is not what vipbench writes")


def put_meta(db: sqlite3.Connection, name: str, value: dict[str, Any]) -> None:
    """Write an entry of `meta`, inside the caller's transaction."""
    text = json.dumps(value, separators=(",", ":"))
    db.execute(
        "INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (name, text, sha256(f"{name}\n{text}"))
    )
