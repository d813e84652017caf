"""How predictions lie in the store, and the hashes over what lies there. No torch here."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from dataclasses import dataclass

import numpy as np

from vipbench.results.predictions import Predictions


def sha256(data: str | bytes) -> str:
    """SHA-256 in hexadecimal; texts as UTF-8."""
    return hashlib.sha256(data if isinstance(data, bytes) else data.encode()).hexdigest()


def row_hash(
    id: int, key: str, status: str, text: str, history_sha256: str, predictions_sha256: str | None
) -> str:
    """SHA-256 over a whole row of `records`. Raises TypeError where a text is none."""
    told = (str(id), key, status, history_sha256, predictions_sha256 or "", text)
    return sha256("\n".join(told))


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
            told = (self.testset, len(self.testset_json), zlib.compress(self.testset_json))
            added = db.execute("INSERT INTO testsets (sha256, size, json) VALUES (?, ?, ?)", told)
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
    text, raw = _inflate(blob, size), _inflate(scores, n * classes * 4)
    if sha256(text) != testset:
        raise ValueError("the test set is another one")
    if predictions_hash(testset, n, classes, raw) != expected:
        raise ValueError("the scores are other ones")
    kept = json.loads(text)
    return Predictions(
        kept["ids"],
        kept["groups"],
        np.array(kept["labels"], dtype=np.int64),
        np.frombuffer(raw, dtype="<f4").reshape(n, classes).astype(np.float32),
    )


def _inflate(blob: bytes, size: int) -> bytes:
    # Never more than was said, whatever the bytes have become.
    if size <= 0:
        raise ValueError("a size is not positive")
    data = zlib.decompressobj().decompress(blob, size)
    if len(data) != size:
        raise ValueError("compressed data are incomplete")
    return data
