"""Records as rows that travel, and back. docs/exchange.md documents the columns."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from vipbench.errors import UsageError
from vipbench.results.records.csv import RECORD_COLUMNS, record_row
from vipbench.results.records.metrics import METRICS
from vipbench.results.records.predictions import Predictions, check_together
from vipbench.results.records.recompute import disagreements, key_problems
from vipbench.results.records.record import Record, RecordError, dump, sha256
from vipbench.results.sharing.privacy import Pseudonyms, public_record
from vipbench.results.store.store import Store
from vipbench.results.store.submissions import submitter

EXPORT_SCHEMA = 1
OWN_COLUMNS = (
    "record",
    "testset",
    "image_ids",
    "image_groups",
    "image_labels",
    "scores",
    "sha256",
)
COLUMNS = ("export_schema", *RECORD_COLUMNS, *OWN_COLUMNS)
# Columns that people read, and that a record must agree with.
_REPEATED = ("key", "status", "shots", "seed", "n", *(n for n in METRICS if n in RECORD_COLUMNS))
# Columns whose values are JSON: text in CSV and Parquet, themselves in JSON lines.
JSON_COLUMNS = frozenset(
    (
        *("sensitivity", "specificity", "left_out", "hparams", "recipe", "protocol", "timing"),
        *("notes", "record", "image_ids", "image_groups", "image_labels"),
    )
)
Row = dict[str, Any]


def export_rows(
    store: Store,
    pseudonyms: Pseudonyms | None,
    with_scores: bool = True,
    superseded: bool = False,
) -> Iterator[Row]:
    """One row a record, every submission of a disputed key among them.

    superseded: also the superseded ones (`Store.superseded`).
    pseudonyms: None leaves image ids, groups, paths and error messages as they are. The ids,
    groups and labels of a test set are given once, in the first row that refers to it.
    """
    written: set[str] = set()
    gone = frozenset() if superseded else store.superseded()
    for record, predictions in all_results(store):
        if record.key in gone:
            continue
        if not with_scores:
            predictions = None
        if pseudonyms is not None:
            if predictions is not None:
                predictions = pseudonyms.predictions(record, predictions)
            record = public_record(record)
        yield _row(record, predictions, written)


def all_results(store: Store) -> Iterator[tuple[Record, Predictions | None]]:
    """Every record of a store with its predictions, all submissions of a key among them."""
    several = store.submissions()
    for record in store.records():
        if record.key not in several:
            yield record, store.predictions(record.key)
    for key, found in several.items():
        for number, record in found:
            yield record, store.predictions(key, number)


def _row(record: Record, predictions: Predictions | None, written: set[str]) -> Row:
    row: Row = {"export_schema": EXPORT_SCHEMA}
    row |= dict(zip(RECORD_COLUMNS, record_row(record), strict=True))
    row |= {name: str(row[name]) for name in ("shots", "views", "validation")}
    row |= dict.fromkeys(OWN_COLUMNS)
    row["record"] = record.to_dict()
    if predictions is not None:
        testset = [predictions.ids, predictions.groups, predictions.labels.tolist()]
        row["testset"] = sha256(dump(testset))
        if row["testset"] not in written:
            written.add(row["testset"])
            row |= dict(zip(("image_ids", "image_groups", "image_labels"), testset, strict=True))
        row["scores"] = base64.b64encode(predictions.scores.astype("<f4").tobytes()).decode()
    row["sha256"] = row_hash(row)
    return row


def row_hash(row: Mapping[str, Any]) -> str:
    """SHA-256 over what a row hands over; its other columns only repeat parts of it."""
    return sha256(dump([row["record"], row["testset"], row["scores"]]))


def read_rows(rows: Iterable[Row], source: str) -> Iterator[tuple[Record, Predictions | None]]:
    """The records of exported rows, each checked: schema, hash, and that its metrics follow from
    its scores. Raises UsageError naming `source` and row."""
    testsets: dict[str, tuple[list[str], list[str] | None, list[int]]] = {}
    for number, row in enumerate(rows, 1):
        try:
            yield _read(row, testsets)
        except (RecordError, ValueError, KeyError, TypeError, binascii.Error) as error:
            reason = f"there is no column {error}" if isinstance(error, KeyError) else str(error)
            raise UsageError(f"{source}, record {number}: {reason}") from None


def _read(row: Row, testsets: dict[str, Any]) -> tuple[Record, Predictions | None]:
    schema = row["export_schema"]
    if type(schema) is not int or schema < 1:
        raise ValueError(f"export_schema is {schema!r}; expected a number, such as {EXPORT_SCHEMA}")
    if schema > EXPORT_SCHEMA:
        raise ValueError(
            f"it has export schema {schema}, this vipbench reads up to {EXPORT_SCHEMA}: upgrade "
            "vipbench"
        )
    if row_hash(row) != row["sha256"]:
        raise ValueError("it was altered: its SHA-256 differs")
    record = Record.from_json(dump(row["record"]))
    if wrong := key_problems(record):
        raise ValueError(f"it was altered: {'; '.join(wrong)}")
    if row["testset"] is None:
        _check_repeated(row, record)
        return record, None
    if row.get("image_ids") is not None:
        testset = (row["image_ids"], row["image_groups"], row["image_labels"])
        if sha256(dump(list(testset))) != row["testset"]:
            raise ValueError("its test set was altered")
        testsets[row["testset"]] = testset
    if row["testset"] not in testsets:
        raise ValueError("its test set is missing from the rows before it; give the whole export")
    ids, groups, labels = testsets[row["testset"]]
    raw = base64.b64decode(row["scores"], validate=True)
    scores = np.frombuffer(raw, dtype="<f4").reshape(len(ids), -1)
    predictions = Predictions(ids, groups, np.array(labels, dtype=np.int64), scores)
    check_together(record, predictions)
    wrong = disagreements(record, predictions)
    if wrong:
        raise ValueError(f"its metrics do not follow from its scores: {'; '.join(wrong)}")
    _check_repeated(row, record)
    return record, predictions


def _check_repeated(row: Row, record: Record) -> None:
    shown = dict(zip(RECORD_COLUMNS, record_row(record), strict=True))
    altered = [name for name in _REPEATED if not _alike(row[name], shown[name])]
    if altered:
        raise ValueError(f"it was altered: its {', '.join(altered)} differ from its record")


def _alike(given: Any, shown: Any) -> bool:
    """Whether a column repeats a number or word, in a form whose fields may all be text."""
    if given is None or shown is None:
        return given is shown
    if not isinstance(shown, int | float):
        return str(given) == str(shown)
    try:
        return float(given) == shown
    except (TypeError, ValueError):
        return False


def with_local_names(
    pairs: Iterable[tuple[Record, Predictions | None]], store: Store
) -> Iterator[tuple[Record, Predictions | None]]:
    """Predictions on a dataset that `store` has too get the images' names from there, since the
    dataset's fingerprint fixes the images and their order: so they can be paired with one's own.
    """
    local: dict[tuple[str, bytes], Predictions] = {}
    seen: set[str] = set()
    for record, predictions in all_results(store):
        if predictions is not None and record.data.fingerprint not in seen:
            seen.add(record.data.fingerprint)
            local[record.data.fingerprint, predictions.labels.tobytes()] = predictions
    for record, predictions in pairs:
        if predictions is not None:
            mine = local.get((record.data.fingerprint, predictions.labels.tobytes()))
            if mine is not None:
                predictions = Predictions(
                    mine.ids, mine.groups, predictions.labels, predictions.scores
                )
        yield record, predictions


def who(records: Iterable[Record]) -> list[str]:
    """The submitters of records, each once."""
    return list(dict.fromkeys(map(submitter, records)))
