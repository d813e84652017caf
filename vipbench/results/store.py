"""The results of one output folder: an SQLite file with one writer. No torch here.

Everything read is checked against a SHA-256 written with it, so that damage to the file is an
error, never another number.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vipbench.results import export, packing, schema
from vipbench.results.lock import StoreError, WriterLock
from vipbench.results.plan import PlanCell, merge, plan_cell
from vipbench.results.record import Predictions, Record, RecordError, check_together

FILE = "results.sqlite"
LOCK = "results.lock"
# How long a reader or the writer waits for the other's transaction, in seconds.
_PATIENCE = 60.0
_WHAT_TO_DO = (
    "Restore it from a copy, or move it away and run again: its cells are then run anew. Nothing "
    "was changed."
)


class Store:
    """The records and predictions of an output folder.

    Opened for writing it takes the folder's lock: StoreError where another driver has it. Opened
    `readonly` it takes none and may look on while a driver writes; there must be a results file.
    Every method raises StoreError, naming file and remedy, where the file is damaged, cut short,
    foreign, of a newer version, or cannot be written.
    """

    def __init__(self, out_dir: str | os.PathLike[str], readonly: bool = False) -> None:
        self.out_dir = Path(out_dir)
        self.path = self.out_dir / FILE
        self.readonly = readonly
        self._lock: WriterLock | None = None
        self._db: sqlite3.Connection | None = None
        try:
            if readonly:
                self._db = self._open()
            else:
                self._lock = self._take_lock()
                if not self.path.exists():
                    self._create()
                self._db = self._open()
        except BaseException:
            self.close()
            raise

    # Opening and closing.

    def _take_lock(self) -> WriterLock:
        try:
            self.out_dir.mkdir(parents=True, exist_ok=True)
            return WriterLock(self.out_dir / LOCK)
        except OSError as error:
            raise StoreError(
                f"{self.out_dir} cannot be written ({error.strerror}); give another output folder"
            ) from None

    def _create(self) -> None:
        # Laid out under another name first: a results file is whole from its first moment, so one
        # of no size is damage and not a beginning.
        new = self.path.with_name(FILE + ".new")
        # A journal whose file was removed would be rolled back into the new one.
        for stale in (new, Path(f"{new}-journal"), Path(f"{self.path}-journal")):
            stale.unlink(missing_ok=True)
        with self._explained():
            db = sqlite3.connect(new, isolation_level=None)
            try:
                db.execute("PRAGMA synchronous = FULL")
                db.execute("BEGIN IMMEDIATE")
                schema.create(db)
                _put_meta(db, "records", {"count": 0, "xor": "0" * 64})
                _put_meta(db, "plan", {"runs": 0, "cells": []})
                db.execute("COMMIT")
            finally:
                db.close()
            new.replace(self.path)
            _sync_folder(self.out_dir)

    def _open(self) -> sqlite3.Connection:
        try:
            with self.path.open("rb") as file:
                head = file.read(16)
        except FileNotFoundError:
            raise StoreError(
                f"{self.path}: no such file. Is this the output folder of a run? "
                f"`vipbench run --out {self.out_dir}` makes one"
            ) from None
        except OSError as error:
            raise StoreError(f"{self.path} cannot be read: {error.strerror}") from None
        if head != b"SQLite format 3\0":
            what = "is empty: it was cut short" if not head else "is not a results file"
            raise StoreError(f"{self.path} {what}. {_WHAT_TO_DO}")
        with self._explained():
            # Opened for writing even to read: what a killed driver left half written has to be
            # rolled back before anyone reads. SQLite itself falls back where it may not write.
            uri = f"{self.path.absolute().as_uri()}?mode=rw"
            db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=_PATIENCE)
            try:
                self._prepare(db)
            except BaseException:
                db.close()
                raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.execute("PRAGMA cell_size_check = ON")
        application, version = schema.layout(db)
        if application != schema.APPLICATION_ID or version < 1:
            raise StoreError(f"{self.path} is an SQLite file, but no results file. {_WHAT_TO_DO}")
        if version > schema.VERSION:
            raise StoreError(
                f"{self.path} has layout {version}, this vipbench reads up to {schema.VERSION}: "
                f"upgrade vipbench, or give another output folder"
            )
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        (page_size,) = db.execute("PRAGMA page_size").fetchone()
        size = self.path.stat().st_size
        if size < pages * page_size:
            raise StoreError(
                f"{self.path} was cut short: {size} bytes of {pages * page_size}. {_WHAT_TO_DO}"
            )
        if self.readonly:
            if version < schema.VERSION:
                raise StoreError(
                    f"{self.path} has the older layout {version}; `vipbench run` on this folder "
                    f"brings it to layout {schema.VERSION}"
                )
            db.execute("PRAGMA query_only = ON")
            return
        # DELETE, not WAL: WAL keeps its index in memory shared between processes, which network
        # file systems do not give. FULL: a commit is on the disk when it returns.
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        if version < schema.VERSION:
            with _transaction(db):
                schema.migrate(db, version)
        with _transaction(db):
            self._meta(db, "records")
            self._meta(db, "plan")

    def close(self) -> None:
        """Close the file and give the lock back. Closing twice is no error."""
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # Writing.

    def add(self, record: Record, predictions: Predictions | None = None) -> None:
        """Keep a record, and what it predicted, in one transaction, on the disk on return.

        A later record takes the place of a failed one with the same key. A finished one is never
        replaced: StoreError. RecordError where record and predictions do not belong together.
        """
        text, digest, packed = record.to_json(), None, None
        if predictions is not None:
            check_together(record, predictions)
            packed = packing.pack(predictions)
            digest = packed.sha256
        row_hash = packing.row_hash(record.key, record.status, text, digest)
        with self._explained(), _transaction(self._writable()) as db:
            count = self._meta(db, "records")
            old = db.execute(
                "SELECT status, sha256 FROM records WHERE key = ?", (record.key,)
            ).fetchone()
            if old is not None and old[0] != "error":
                raise StoreError(
                    f"{self.path} already holds the result of {_describe(record)} (key "
                    f"{record.key}); a finished cell is never replaced"
                )
            if old is not None:
                count = _counted(count, old[1], -1)
                db.execute(
                    "UPDATE records SET status = ?, json = ?, predictions_sha256 = ?, sha256 = ? "
                    "WHERE key = ?",
                    (record.status, text, digest, row_hash, record.key),
                )
            else:
                db.execute(
                    "INSERT INTO records VALUES (?, ?, ?, ?, ?)",
                    (record.key, record.status, text, digest, row_hash),
                )
            if packed is not None:
                packed.insert(db, record.key)
            _put_meta(db, "records", _counted(count, row_hash, 1))

    def save_plan(self, cells: Iterable[PlanCell | Mapping[str, Any]]) -> None:
        """Keep what a run asks for, in the order in which a table is to show it.

        It is merged with what earlier runs asked for: see `plan.merge`. Raises ValueError.
        """
        new = [plan_cell(cell) for cell in cells]
        with self._explained(), _transaction(self._writable()) as db:
            kept = self._meta(db, "plan")
            run = kept["runs"] + 1
            merged = merge((plan_cell(c) for c in kept["cells"]), new, run)
            _put_meta(db, "plan", {"runs": run, "cells": [c.to_dict() for c in merged]})

    # Reading.

    def status(self) -> dict[str, str]:
        """key -> "ok" or "error" of every record, in the order of their adding."""
        return {key: status for key, status, *_ in self._rows()}

    def records(self) -> list[Record]:
        """Every record, in the order of their adding."""
        return [self._parse(key, status, text) for key, status, text, *_ in self._rows()]

    def record(self, key: str) -> Record | None:
        """The record under `key`."""
        row = self._row(key)
        return None if row is None else self._parse(*row[:3])

    def plan(self, latest: bool = False) -> list[PlanCell]:
        """The cells that the folder's runs asked for, in table order; `latest`: the last run's."""
        with self._explained():
            kept = self._meta(self._open_db(), "plan")
        cells = [plan_cell(cell) for cell in kept["cells"]]
        return [c for c in cells if c.run == kept["runs"]] if latest else cells

    def predictions(self, key: str) -> Predictions | None:
        """What the cell said of every test image; None where the store has none of it."""
        row = self._row(key)
        if row is None or row[3] is None:
            return None
        with self._explained():
            found = (
                self._open_db()
                .execute(
                    "SELECT t.sha256, t.size, t.json, p.n, p.classes, p.scores FROM predictions p "
                    "JOIN testsets t ON t.sha256 = p.testset WHERE p.key = ?",
                    (key,),
                )
                .fetchone()
            )
        if found is None:
            raise self._damaged(f"the predictions of record {key} are missing")
        try:
            testset, size, blob, n, classes, scores = found
            return packing.unpack(testset, size, blob, n, classes, scores, row[3])
        except (ValueError, zlib.error, KeyError, TypeError, OverflowError, MemoryError) as error:
            raise self._damaged(f"the predictions of record {key} were altered ({error})") from None

    def export_csv(self, path: str | os.PathLike[str]) -> None:
        """Write every record as one row of a CSV file; see docs/results.md for the columns."""
        export.write_records(Path(path), self.records())

    def export_predictions_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one row a record and test image: key, id, group, label, predicted, scores."""

        def rows() -> Iterator[tuple[Record, Predictions]]:
            for record in self.records():
                predictions = self.predictions(record.key)
                if predictions is not None:
                    yield record, predictions

        export.write_predictions(Path(path), rows())

    def _rows(self) -> list[tuple[str, str, str, str | None, str]]:
        with self._explained(), _transaction(self._open_db(), "BEGIN") as db:
            count = self._meta(db, "records")
            rows = db.execute(
                "SELECT key, status, json, predictions_sha256, sha256 FROM records ORDER BY rowid"
            ).fetchall()
        together = "0" * 64
        for row in rows:
            self._check(row)
            together = packing.xor(together, row[4])
        if (len(rows), together) != (count["count"], count["xor"]):
            raise self._damaged(f"it holds {len(rows)} whole records, {count['count']} were added")
        return rows

    def _row(self, key: str) -> tuple[str, str, str, str | None, str] | None:
        with self._explained():
            row: tuple[str, str, str, str | None, str] | None = (
                self._open_db()
                .execute(
                    "SELECT key, status, json, predictions_sha256, sha256 FROM records "
                    "WHERE key = ?",
                    (key,),
                )
                .fetchone()
            )
        if row is not None:
            self._check(row)
        return row

    def _check(self, row: tuple[str, str, str, str | None, str]) -> None:
        if packing.row_hash(*row[:4]) != row[4]:
            raise self._damaged(f"record {row[0]} was altered")

    def _parse(self, key: str, status: str, text: str) -> Record:
        try:
            record = Record.from_json(text)
        except RecordError as error:
            raise StoreError(f"{self.path}: record {key}: {error}") from None
        if (record.key, record.status) != (key, status):
            raise self._damaged(f"record {key} is filed under another key or status")
        return record

    def _meta(self, db: sqlite3.Connection, name: str) -> dict[str, Any]:
        row = db.execute("SELECT value, sha256 FROM meta WHERE name = ?", (name,)).fetchone()
        if row is None or packing.sha256(row[0]) != row[1]:
            raise self._damaged(f"its entry '{name}' was altered or is missing")
        value: dict[str, Any] = json.loads(row[0])
        return value

    # Helpers.

    def _open_db(self) -> sqlite3.Connection:
        if self._db is None:
            raise StoreError(f"{self.path} is closed")
        return self._db

    def _writable(self) -> sqlite3.Connection:
        if self.readonly:
            raise StoreError(f"{self.path} was opened to be read only")
        return self._open_db()

    def _damaged(self, what: str) -> StoreError:
        return StoreError(f"{self.path} is damaged: {what}. {_WHAT_TO_DO}")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            name = getattr(error, "sqlite_errorname", "")
            if name.startswith("SQLITE_FULL"):
                raise StoreError(
                    f"{self.path}: no space left on the disk. What was kept is safe; free some and "
                    f"run the same command again"
                ) from error
            if name.startswith("SQLITE_BUSY"):
                raise StoreError(
                    f"{self.path} stayed locked by another program for {_PATIENCE:.0f} s; close "
                    f"what has it open and try again"
                ) from error
            if name.startswith(("SQLITE_READONLY", "SQLITE_PERM", "SQLITE_CANTOPEN")):
                raise StoreError(
                    f"{self.path} cannot be opened or written ({error}); check the rights of the "
                    f"file and its folder"
                ) from error
            if name.startswith("SQLITE_IOERR"):
                raise StoreError(
                    f"{self.path}: reading or writing failed ({error}); check disk and space, then "
                    f"run the same command again"
                ) from error
            raise self._damaged(str(error)) from error
        except UnicodeDecodeError as error:
            raise self._damaged(str(error)) from error


@contextmanager
def _transaction(
    db: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE"
) -> Iterator[sqlite3.Connection]:
    db.execute(begin)
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        # SQLite has rolled back by itself after some failures, a full disk among them.
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _put_meta(db: sqlite3.Connection, name: str, value: dict[str, Any]) -> None:
    text = json.dumps(value, separators=(",", ":"))
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (name, text, packing.sha256(text)))


def _counted(count: dict[str, Any], row_hash: str, change: int) -> dict[str, Any]:
    return {"count": count["count"] + change, "xor": packing.xor(count["xor"], row_hash)}


def _describe(record: Record) -> str:
    c = record.cell
    return f"{c.method} on {c.dataset}, {c.backbone}, shots {c.shots}, seed {c.seed}"


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
