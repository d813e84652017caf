"""Several results under one key: which of them stands, and when two are the same.

A record's submitter is its `provenance.submitter`; what a run makes has none.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vipbench.results.records.predictions import Predictions
from vipbench.results.records.record import Record, sha256
from vipbench.results.store.rows import Row
from vipbench.results.store.sqlite import get_meta

# The entry of `meta` that says which submission was chosen: key -> number of its row.
CHOICES = "choices"
# Stands for a key's row while several differ and none was chosen; rows are numbered from 1.
DISPUTED = 0
OWN = "(own)"


def get_choices(db: sqlite3.Connection, path: Path) -> dict[str, int]:
    """key -> the number of the submission that was chosen. Where the entry is missing nothing was
    chosen; no number could be shown by mistake for that."""
    if db.execute("SELECT 1 FROM meta WHERE name = ?", (CHOICES,)).fetchone() is None:
        return {}
    return dict(get_meta(db, path, CHOICES))


def standing(rows: Iterable[Row], choices: Mapping[str, int]) -> dict[str, int]:
    """key -> the number of the row that stands for it, or DISPUTED."""
    numbers: dict[str, list[int]] = {}
    for row in rows:
        numbers.setdefault(row.key, []).append(row.id)
    return {
        key: found[0]
        if len(found) == 1
        else choices[key]
        if choices.get(key) in found
        else DISPUTED
        for key, found in numbers.items()
    }


Fingerprint = tuple[str | None, str]


def fingerprint(record: Record, predictions: Predictions | None) -> Fingerprint:
    """(digest of labels and scores or None, the metrics): what makes two results the same. Ids
    have no say: they may be pseudonyms, and the key fixes which images there are, in which
    order."""
    digest = None
    if predictions is not None:
        digest = sha256(predictions.labels.tobytes() + predictions.scores.astype("<f4").tobytes())
    return digest, repr(sorted(record.metrics.items(), key=lambda item: item[0]))


def agree(a: Fingerprint, b: Fingerprint) -> bool:
    """Whether two results are the same, to the bit."""
    if a[0] is not None and b[0] is not None:
        return a[0] == b[0]
    return a[1] == b[1]


def submitter(record: Record) -> str:
    """Who handed the record in; OWN for what was run into the folder itself."""
    name = record.provenance.get("submitter")
    return name if isinstance(name, str) and name else OWN


def device(record: Record) -> str:
    """What the record was computed on."""
    return str(record.provenance.get("device") or "unknown device")


def submitted_by(record: Record, name: str, scored: bool = True) -> Record:
    """The record as submitted by `name`; earlier submitters are kept. scored: whether its
    scores came with it; without them its metrics are marked as unverified."""
    before = submitter(record)
    chain = name if before in (OWN, name) else f"{before} via {name}"
    changed: dict[str, Any] = {**record.provenance, "submitter": chain}
    if record.ok and not scored:
        changed["unverified"] = True
    return record.model_copy(update={"provenance": changed})


def matches(record: Record, preferred: str) -> bool:
    """Whether `preferred`, SUBMITTER or SUBMITTER@DEVICE, means this record."""
    return preferred in (submitter(record), f"{submitter(record)}@{device(record)}")
