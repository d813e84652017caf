"""The results of one output folder: an SQLite file with one writer. Everything
read is checked against a SHA-256 written with it: damage is an error, never another number."""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from vipbench.results.records import csv as export
from vipbench.results.records import recompute as rescoring
from vipbench.results.records.code import superseded
from vipbench.results.records.folds import join as join_folds
from vipbench.results.records.folds import pool
from vipbench.results.records.plan import PlannedCell, merge, planned_cell
from vipbench.results.records.predictions import Predictions
from vipbench.results.records.record import Record, RecordError, sha256
from vipbench.results.store import rows as learned
from vipbench.results.store import rows as packing
from vipbench.results.store import sqlite as database
from vipbench.results.store.lock import StoreError, WriterLock, take_lock
from vipbench.results.store.rows import COLUMNS, NOTHING, Row, count, write_record
from vipbench.results.store.sqlite import damaged, explained, get_meta, put_meta, transaction
from vipbench.results.store.submissions import (
    CHOICES,
    DISPUTED,
    OWN,
    Fingerprint,
    agree,
    fingerprint,
    get_choices,
    standing,
    submitter,
)

FILE = "results.sqlite"
LOCK = "results.lock"


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
        # key -> number of the row that stands for it (submissions.standing), of those seen so far
        self._ids: dict[str, int] = {}
        self._counted = NOTHING
        self._folds: dict[str, Sequence[str]] = {}
        try:
            if not readonly:
                self._lock = take_lock(self.out_dir, LOCK)
                if not self.path.exists():
                    database.create(self.path)
            self._db = database.connect(self.path, readonly)
            self.status()
            self.plan()
        except BaseException:
            self.close()
            raise

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

    def __exit__(self, *_: object) -> None:
        self.close()

    # Writing.

    def add(
        self,
        record: Record,
        predictions: Predictions | None = None,
        parameters: bytes | None = None,
    ) -> None:
        """Keep a record, what it predicted and what was learned (a safetensors file), in one
        transaction, on the disk on return.

        A later record takes the place of a failed one with the same key. A finished one is never
        replaced: StoreError; beside results that others submitted, one's own is kept, too, and
        represents the key. RecordError where what is given does not belong together.
        """
        self.add_many(
            [(record, predictions)], {} if parameters is None else {record.key: parameters}
        )

    def add_many(
        self,
        pairs: Iterable[tuple[Record, Predictions | None]],
        parameters: Mapping[str, bytes] | None = None,
    ) -> None:
        """`add` each, in one transaction: all of them are kept, or none. parameters: by key."""
        ids = dict(self._ids)
        with explained(self.path), transaction(self._writable()) as db:
            counted = get_meta(db, self.path, "records")
            if counted != self._counted:  # another writer, after the lock's file was removed
                self._rows()
                ids = dict(self._ids)
            choices = get_choices(db, self.path)
            for record, predictions in pairs:
                number = ids.get(record.key)
                old = None if number == DISPUTED else self._select(db, number)
                if number == DISPUTED or (old is not None and old.status != "error"):
                    if submitter(record) != OWN or self._holds_own(db, record.key):
                        raise StoreError(
                            f"{self.path} already holds the result of {record.cell.words()} (key "
                            f"{record.key}); a finished cell is never replaced"
                        )
                    old = None
                    choices[record.key] = ids[record.key] = counted["count"] + 1
                    put_meta(db, CHOICES, choices)
                ids.setdefault(record.key, counted["count"] + 1)
                row = write_record(db, ids[record.key], record, predictions)
                if parameters and record.key in parameters:
                    learned.write_parameters(db, row.id, record, parameters[record.key])
                if old is not None:
                    counted = count(counted, old, -1)
                counted = count(counted, row, 1)
            put_meta(db, "records", counted)
        self._ids, self._counted = ids, counted

    def save_plan(self, cells: Iterable[PlannedCell | Mapping[str, Any]]) -> None:
        """Keep what a run asks for, in the order in which a table is to show it.

        It is merged with what earlier runs asked for: see `plan.merge`. Raises ValueError.
        """
        new = [planned_cell(cell) for cell in cells]
        with explained(self.path), transaction(self._writable()) as db:
            kept = get_meta(db, self.path, "plan")
            run = kept["runs"] + 1
            merged = merge((planned_cell(c) for c in kept["cells"]), new, run)
            put_meta(db, "plan", {"runs": run, "cells": [c.stored() for c in merged]})

    # Reading.

    def status(self, imported: bool = True) -> dict[str, str]:
        """key -> "ok" or "error" of every record, in the order of their adding. imported: whether
        finished ones that others submitted count; disputed ones always do."""
        rows = self._rows()
        found = {row.key: row.status for row in rows}
        for row in () if imported else rows:
            stands = self._ids[row.key] == row.id and row.status == "ok"
            # Most records are one's own, and their text does without parsing.
            if stands and '"submitter"' in row.json and submitter(self._parse(row, None)) != OWN:
                del found[row.key]
        return found

    def disputed(self) -> list[str]:
        """The keys of which there are several submissions, and none was chosen."""
        self._rows()
        return [key for key, number in self._ids.items() if number == DISPUTED]

    def submissions(self) -> dict[str, list[tuple[int, Record]]]:
        """Of every key with several results: all of them, each with its number, without history."""
        rows: dict[str, list[Row]] = {}
        for row in self._rows():
            rows.setdefault(row.key, []).append(row)
        return {
            key: [(row.id, self._parse(row, None)) for row in found]
            for key, found in rows.items()
            if len(found) > 1
        }

    def records(self, history: bool = True) -> list[Record]:
        """Every record, in the order of adding, with metrics as defined now. Without `history`
        theirs is empty, most of their size. Of disputed keys there is none."""
        rows = self._rows()
        rows = [row for row in rows if self._ids[row.key] == row.id]
        if not history:
            seen: dict[str, Any] = {}
            return [self._current(row, None).sharing(seen) for row in rows]
        with explained(self.path), transaction(self._open_db(), "BEGIN") as db:
            kept = dict(database.read_all(db, self.path, "SELECT id, json FROM histories"))
        return [self._current(row, kept.get(row.id, "")) for row in rows]

    def superseded(self) -> frozenset[str]:
        """The keys of records that tables leave out; see `code.superseded`."""
        several = [record for found in self.submissions().values() for _, record in found]
        return superseded([*self.records(history=False), *several], self.plan())

    def record(self, key: str) -> Record | None:
        """The record under `key`. Raises StoreError where it is disputed."""
        number = self._number(key)
        with explained(self.path), transaction(self._open_db(), "BEGIN") as db:
            row = self._select(db, number)
            kept = db.execute("SELECT json FROM histories WHERE id = ?", (number,)).fetchone()
        return None if row is None else self._current(row, kept[0] if kept else "")

    def plan(self, latest: bool = False) -> list[PlannedCell]:
        """The cells that the folder's runs asked for, in table order; `latest`: the last run's."""
        with explained(self.path):
            kept = get_meta(self._open_db(), self.path, "plan")
        try:
            cells = [planned_cell(cell) for cell in kept["cells"]]
        except (TypeError, ValueError) as error:
            what = f"its entry 'plan' is not what vipbench writes ({error})"
            raise damaged(self.path, what) from None
        return [c for c in cells if c.run == kept["runs"]] if latest else cells

    def pooled(
        self,
        keep: Sequence[str] = (),
        planned: Sequence[PlannedCell] | None = None,
        others: bool = True,
    ) -> tuple[list[Record], list[PlannedCell]]:
        """Records, without history, and plan as tables take them, with the folds of a dataset taken
        together; see `folds.pool`. `predictions` gives their scores, too. planned: the cells that
        are meant, by default all that the folder was asked for. others: whether records of other
        cells are there, too. Raises TableError."""
        records = self.records(history=False)
        planned = self.plan() if planned is None else planned
        if not others:
            keys = {cell.key for cell in planned}
            records = [record for record in records if record.key in keys]
        found = pool(records, planned, self.predictions, keep)
        self._folds.update(found.folds)
        return found.records, found.planned

    def predictions(self, key: str, number: int | None = None) -> Predictions | None:
        """The cell's scores for every test image; None where the store has none of it. number: of
        one submission of several; without it StoreError is raised for a disputed key."""
        if key in self._folds:
            return join_folds(self._folds[key], self.predictions)
        return self._unpack(self._number(key) if number is None else number, key)

    def parameters(self, key: str, number: int | None = None) -> bytes | None:
        """What the cell's method learned, as a safetensors file; None where the store has none.
        number: as for `predictions`."""
        number = self._number(key) if number is None else number
        row = self._select(self._open_db(), number)
        if number is None or row is None:
            return None
        return learned.read_parameters(self._open_db(), self.path, number, self._parse(row, None))

    def _unpack(self, number: int | None, key: str) -> Predictions | None:
        with explained(self.path), transaction(self._open_db(), "BEGIN") as db:
            row = self._select(db, number)
            found = db.execute(
                "SELECT t.sha256, t.size, t.json, p.n, p.classes, p.scores FROM predictions p "
                "JOIN testsets t ON t.id = p.testset WHERE p.id = ?",
                (number,),
            ).fetchone()
        if row is None or row.predictions_sha256 is None:
            return None
        if found is None:
            raise damaged(self.path, f"the predictions of record {key} are missing")
        try:
            testset, size, blob, n, classes, scores = found
            counts = self._parse(row, None).data.test_counts
            if (n, classes) != (sum(counts), len(counts)):
                raise ValueError(f"{n} images of {classes} classes, the record says {counts}")
            return packing.unpack(testset, size, blob, n, classes, scores, row.predictions_sha256)
        except (ValueError, TypeError, zlib.error, OverflowError, MemoryError) as error:
            what = f"the predictions of record {key} were altered ({error})"
            raise damaged(self.path, what) from None

    def export_csv(self, path: str | os.PathLike[str]) -> None:
        """Write every record that is not superseded as one row of a CSV file; see docs/results.md
        for the columns."""
        gone = self.superseded()
        kept = (record for record in self.records(history=False) if record.key not in gone)
        export.write_records(Path(path), kept)

    def export_predictions_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one row a record and test image: key, id, group, label, predicted, scores."""

        def pairs() -> Iterator[tuple[Record, Predictions]]:
            for record in self.records(history=False):
                predictions = self.predictions(record.key)
                if predictions is not None:
                    yield record, predictions

        export.write_predictions(Path(path), pairs())

    # Helpers.

    def _rows(self) -> list[Row]:
        with explained(self.path), transaction(self._open_db(), "BEGIN") as db:
            counted = get_meta(db, self.path, "records")
            choices = get_choices(db, self.path)
            rows, total = [], NOTHING
            query = f"SELECT {COLUMNS} FROM records ORDER BY id"
            for values in database.read_all(db, self.path, query):
                row = Row(*values)
                self._check(row)
                total = count(total, row, 1)
                rows.append(row)
        if total != counted:
            raise damaged(
                self.path, f"it holds {total['count']} records, {counted['count']} were added"
            )
        self._ids, self._counted = standing(rows, choices), counted
        return rows

    def _number(self, key: str) -> int | None:
        if key not in self._ids and self.readonly:
            self._rows()  # the driver that is looked at may have added it since
        if self._ids.get(key) == DISPUTED:
            raise StoreError(
                f"{self.path}: there are several submissions of {key} with different scores; "
                f"`vipbench merge --out {self.out_dir} --prefer SUBMITTER` chooses"
            )
        return self._ids.get(key)

    def _select(self, db: sqlite3.Connection, number: int | None) -> Row | None:
        if number is None:
            return None
        found = db.execute(f"SELECT {COLUMNS} FROM records WHERE id = ?", (number,)).fetchone()
        if found is None:
            raise damaged(self.path, f"record {number} is missing")
        row = Row(*found)
        self._check(row)
        return row

    def _holds_own(self, db: sqlite3.Connection, key: str) -> bool:
        """Whether one of the key's results was run into this folder."""
        found = db.execute(f"SELECT {COLUMNS} FROM records WHERE key = ?", (key,)).fetchall()
        return any(submitter(self._parse(Row(*values), None)) == OWN for values in found)

    def _check(self, row: Row) -> None:
        try:
            whole = packing.row_hash(*row[:-1]) == row.sha256
        except TypeError:
            whole = False
        if not whole:
            raise damaged(self.path, f"record {row.key} was altered")

    def _current(self, row: Row, history: str | None) -> Record:
        return rescoring.current(self._parse(row, history), lambda: self._unpack(row.id, row.key))

    def _parse(self, row: Row, history: str | None) -> Record:
        history_text = history if isinstance(history, str) else ""
        if history is not None and sha256(history_text) != row.history_sha256:
            raise damaged(self.path, f"the history of record {row.key} was altered or is missing")
        try:
            return Record.from_json_parts(row.json, history_text or "[]")
        except RecordError as error:
            raise StoreError(f"{self.path}: record {row.key}: {error}") from None

    def _open_db(self) -> sqlite3.Connection:
        if self._db is None:
            raise StoreError(f"{self.path} is closed")
        return self._db

    def _writable(self) -> sqlite3.Connection:
        if self.readonly:
            raise StoreError(f"{self.path} was opened to be read only")
        if self._lock is not None:
            self._lock.keep()
        return self._open_db()


# A record, what it predicted, and, where it is kept too, what was learned.
Handed = tuple[Record, Predictions | None] | tuple[Record, Predictions | None, bytes | None]

Submitted = Literal["new", "same", "other"]


class Collection(Store):
    """The output folder's store, where several results may lie under one key.

    While they differ and none was chosen no record stands for the key, so that no table shows one
    of them as the result. Nothing is averaged, and nothing is thrown away.
    """

    def submit(self, handed: Iterable[Handed]) -> list[Submitted]:
        """Add results to what is there and return the outcome of each.

        "new": the key was not there, or had failed. "same": these scores are there already (these
        metrics, where either comes without scores), or the cell failed there; nothing is kept.
        "other": the scores differ from those that are there, and both are kept.
        """
        rows: dict[str, list[Row]] = {}
        known: dict[int, Fingerprint] = {}
        outcomes: list[Submitted] = []
        with explained(self.path), transaction(self._writable()) as db:
            for row in self._rows():
                rows.setdefault(row.key, []).append(row)
            counted = get_meta(db, self.path, "records")
            for record, predictions, *rest in handed:
                there = rows.setdefault(record.key, [])
                failed = [row for row in there if row.status == "error"]
                if there and not record.ok:
                    outcomes.append("same")
                    continue
                mine = fingerprint(record, predictions)
                if not failed and any(agree(mine, self._known(row, known)) for row in there):
                    outcomes.append("same")
                    continue
                outcomes.append("other" if there and not failed else "new")
                number = failed[0].id if failed else counted["count"] + 1
                row = write_record(db, number, record, predictions)
                for parameters in rest:
                    if parameters is not None:
                        learned.write_parameters(db, number, record, parameters)
                known[number] = mine
                if failed:
                    counted = count(counted, failed[0], -1)
                    there.remove(failed[0])
                counted = count(counted, row, 1)
                there.append(row)
            put_meta(db, "records", counted)
        self._rows()
        return outcomes

    def _known(self, row: Row, known: dict[int, Fingerprint]) -> Fingerprint:
        if row.id not in known:
            known[row.id] = fingerprint(self._parse(row, None), self._unpack(row.id, row.key))
        return known[row.id]

    def choose(self, choices: Mapping[str, int]) -> None:
        """Say which of a key's submissions stands: key -> number, as `submissions` gives it.
        Raises StoreError for a number that the key does not have."""
        there = {(row.key, row.id) for row in self._rows()}
        for key, number in choices.items():
            if (key, number) not in there:
                raise StoreError(f"{self.path} has no submission {number} of the key {key}")
        with explained(self.path), transaction(self._writable()) as db:
            put_meta(db, CHOICES, get_choices(db, self.path) | dict(choices))
        self._rows()
