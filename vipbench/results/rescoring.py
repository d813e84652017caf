"""Metrics as they are defined now, from the scores that a record's store keeps: a metric whose
definition changed trains nothing again. No torch here."""

from __future__ import annotations

from collections.abc import Callable

from vipbench.results.metrics import METRICS, compute_metrics
from vipbench.results.predictions import Predictions
from vipbench.results.record import Record


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
