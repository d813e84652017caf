"""Metrics computed again from stored scores, to check a record or to bring it up to date."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from vipbench.results.records.metrics import METRICS, compute_metrics
from vipbench.results.records.predictions import Predictions
from vipbench.results.records.record import Record

# Sums may be taken in another order by another version of a library.
ROUNDING = 1e-9


def disagreements(record: Record, predictions: Predictions) -> list[str]:
    """`metric: stored, recomputed` of every metric that does not follow from the scores. Metrics
    whose definition has changed since are passed over."""
    names = record.data.class_names
    if predictions.scores.shape[1] != len(names):
        return [f"{predictions.scores.shape[1]} scores an image for {len(names)} classes"]
    found = compute_metrics(predictions.labels, predictions.scores, names)
    revisions = record.provenance.get("metric_revisions")
    told = []
    for name, stored in record.metrics.items():
        metric = METRICS.get(name)
        old = revisions.get(name) if isinstance(revisions, dict) else None
        if name not in found or (metric is not None and old not in (None, metric.revision)):
            continue
        if not _same(stored, found[name]):
            told.append(f"{name}: {_show(stored)} stored, {_show(found[name])} recomputed")
    return told


def _same(stored: Any, found: Any) -> bool:
    if isinstance(stored, Mapping) and isinstance(found, Mapping):
        return stored.keys() == found.keys() and all(_same(stored[k], found[k]) for k in found)
    if isinstance(stored, float) and isinstance(found, float):
        return math.isclose(stored, found, rel_tol=0, abs_tol=ROUNDING)
    return bool(stored == found)


def _show(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def is_stale(record: Record) -> bool:
    """Whether the record's metrics are of other revisions than today's, or some are missing."""
    known = record.provenance.get("metric_revisions")
    now = {name: metric.revision for name, metric in METRICS.items()}
    return record.ok and isinstance(known, dict) and known != now


def current(record: Record, scores: Callable[[], Predictions | None]) -> Record:
    """The record with today's metrics, where they are others than its own and its scores are kept;
    `provenance.rescored` then says which revisions it was made with."""
    if not is_stale(record):
        return record
    predictions = scores()
    if predictions is None:
        return record
    value = record.to_dict()
    names = record.data.class_names
    value["metrics"] = compute_metrics(predictions.labels, predictions.scores, names)
    value["provenance"] |= {
        "metric_revisions": {name: metric.revision for name, metric in METRICS.items()},
        "rescored": {"from": record.provenance["metric_revisions"]},
    }
    return Record.of(value)
