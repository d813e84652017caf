"""The rows of a store: records, packed scores, learned parameters and their hashes."""

from __future__ import annotations

import json
import sqlite3
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vipbench.results.records.predictions import Predictions, check_together
from vipbench.results.records.record import Record, RecordError, sha256
from vipbench.results.store.sqlite import damaged, explained

# What a stranger's file may make of little: below so many bytes anything, above them so many times
# its size on the disk.
SURE_BYTES, MOST_TIMES = 64 * 1024**2, 100
# For each image of a test set: bytes of its id and group, and commas and brackets.
MOST_IMAGE_BYTES, MOST_IMAGE_VALUES = 16 * 1024, 32


def row_hash(
    id: int, key: str, status: str, text: str, history_sha256: str, predictions_sha256: str | None
) -> str:
    """SHA-256 over a whole row of `records`. Raises TypeError where a text is none."""
    fields = (str(id), key, status, history_sha256, predictions_sha256 or "", text)
    return sha256("\n".join(fields))


def xor(a: str, b: str) -> str:
    """XOR of two 256-bit numbers in hexadecimal."""
    return f"{int(a, 16) ^ int(b, 16):064x}"


def predictions_hash(testset: str, n: int, classes: int, scores: bytes) -> str:
    """SHA-256 over a cell's test set and scores: equal predictions have equal hashes."""
    return sha256(f"{testset} {n} {classes}\n".encode() + scores)


@dataclass(frozen=True)
class Packed:
    """Predictions, ready to be written. Test sets are shared by cells, so they are apart."""

    sha256: str
    testset: str
    testset_json: bytes
    n: int
    classes: int
    scores: bytes

    def insert(self, db: sqlite3.Connection, id: int) -> None:
        """Write them as record `id`'s, and their test set where it is new."""
        known = db.execute("SELECT id FROM testsets WHERE sha256 = ?", (self.testset,)).fetchone()
        if known is None:
            values = (self.testset, len(self.testset_json), zlib.compress(self.testset_json))
            added = db.execute("INSERT INTO testsets (sha256, size, json) VALUES (?, ?, ?)", values)
            known = (added.lastrowid,)
        db.execute(
            "INSERT INTO predictions VALUES (?, ?, ?, ?, ?)",
            (id, known[0], self.n, self.classes, zlib.compress(self.scores)),
        )


def pack(predictions: Predictions) -> Packed:
    """What `unpack` takes apart again, to the bit."""
    testset = json.dumps(
        {
            "ids": predictions.ids,
            "groups": predictions.groups,
            "labels": predictions.labels.tolist(),
        },
        separators=(",", ":"),
    ).encode()
    n, classes = predictions.scores.shape
    scores = predictions.scores.astype("<f4").tobytes()
    name = sha256(testset)
    digest = predictions_hash(name, n, classes, scores)
    return Packed(digest, name, testset, n, classes, scores)


def unpack(
    testset: str, size: int, blob: bytes, n: int, classes: int, scores: bytes, expected: str
) -> Predictions:
    """Raises ValueError, or zlib.error, where anything differs from what was packed."""
    if size > n * MOST_IMAGE_BYTES + MOST_IMAGE_BYTES:
        raise ValueError(f"its test set has {size} bytes for {n} images")
    text, raw = _inflate(blob, size), _inflate(scores, n * classes * 4)
    if sum(map(text.count, (b",", b"[", b"{"))) > (n + 1) * MOST_IMAGE_VALUES:
        raise ValueError(f"its test set has more values than {n} images")
    if sha256(text) != testset:
        raise ValueError("the test set differs")
    if predictions_hash(testset, n, classes, raw) != expected:
        raise ValueError("the scores differ")
    kept = json.loads(text)
    return Predictions(
        kept["ids"],
        kept["groups"],
        np.array(kept["labels"], dtype=np.int64),
        np.frombuffer(raw, dtype="<f4").reshape(n, classes).astype(np.float32),
    )


def _inflate(blob: bytes, size: int) -> bytes:
    # Never more than was declared, even where the bytes are damaged.
    if size <= 0:
        raise ValueError("a size is not positive")
    if size > SURE_BYTES and size > MOST_TIMES * len(blob):
        raise ValueError(f"{len(blob)} bytes would become {size}")
    data = zlib.decompressobj().decompress(blob, size)
    if len(data) != size:
        raise ValueError("compressed data are incomplete")
    return data


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
        history_sha256 = sha256(history)
        fields = (id, record.key, record.status, text, history_sha256, predictions_sha256)
        return cls(*fields, sha256=row_hash(*fields)), history


COLUMNS = ", ".join(Row._fields)

NOTHING: dict[str, Any] = {"count": 0, "xor": "0" * 64}


def count(counted: dict[str, Any], row: Row, change: int) -> dict[str, Any]:
    """What is known of all rows together, with `row` added (change 1) or taken away (-1)."""
    return {
        "count": counted["count"] + change,
        "xor": xor(counted["xor"], row.sha256),
    }


def write_record(
    db: sqlite3.Connection, id: int, record: Record, predictions: Predictions | None
) -> Row:
    """Write a record under the number `id`, in the place of what was there, and return its row.
    Raises RecordError where record and predictions do not belong together."""
    packed = None
    if predictions is not None:
        check_together(record, predictions)
        packed = pack(predictions)
    row, history = Row.of(id, record, packed.sha256 if packed else None)
    db.execute(f"INSERT OR REPLACE INTO records ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    db.execute("INSERT OR REPLACE INTO histories VALUES (?, ?)", (id, history))
    if packed is not None:
        packed.insert(db, id)
    return row


def parameters_sha256(record: Record) -> str | None:
    """The digest of the parameters that the record says there are; None where it says none."""
    parameters = record.provenance.get("parameters")
    found = parameters.get("sha256") if isinstance(parameters, dict) else None
    return found if isinstance(found, str) else None


def write_parameters(db: sqlite3.Connection, id: int, record: Record, data: bytes) -> None:
    """Keep `data` as record `id`'s parameters. Raises RecordError where the record tells of
    others."""
    if parameters_sha256(record) != sha256(data):
        raise RecordError(
            f"record {record.key}: provenance.parameters.sha256 is {parameters_sha256(record)}, "
            f"the parameters given with it have {sha256(data)}"
        )
    db.execute("INSERT OR REPLACE INTO parameters VALUES (?, ?)", (id, data))


def read_parameters(db: sqlite3.Connection, path: Path, id: int, record: Record) -> bytes | None:
    """Record `id`'s parameters, checked; None where there are none. Raises StoreError."""
    expected = parameters_sha256(record)
    if expected is None:
        return None
    with explained(path):
        found = db.execute("SELECT data FROM parameters WHERE id = ?", (id,)).fetchone()
    if found is not None and sha256(bytes(found[0])) != expected:
        raise damaged(path, f"the parameters of record {record.key} were altered")
    return None if found is None else bytes(found[0])
