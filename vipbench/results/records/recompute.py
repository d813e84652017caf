"""Checks of a record against itself: its key, and its metrics, computed again from its scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from vipbench.results.records.metrics import METRICS, compute_metrics
from vipbench.results.records.predictions import Predictions
from vipbench.results.records.record import PATH, Record, dump, json_sha256

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
    problems = []
    for name, stored in record.metrics.items():
        metric = METRICS.get(name)
        old = revisions.get(name) if isinstance(revisions, dict) else None
        if name not in found or (metric is not None and old not in (None, metric.revision)):
            continue
        if not _same(stored, found[name]):
            problems.append(f"{name}: {_show(stored)} stored, {_show(found[name])} recomputed")
    return problems


def key_problems(record: Record) -> list[str]:
    """Why the record's key is not that of the cell that the record describes; [] where it is.

    A key is the SHA-256 of `provenance.key_parts`, and these repeat parts of the record. A record
    whose scores and key were both made up passes: only running the cell again finds it.
    """
    parts = record.provenance.get("key_parts")
    if not isinstance(parts, dict):
        return ["provenance.key_parts, of which its key is made, is missing"]
    if json_sha256(parts) != record.key:
        if PATH in dump(parts):
            return [f"its key_parts hold {PATH} in a path's place; export it with --include-paths"]
        return ["its key is not the SHA-256 of its key_parts"]
    tested = parts.get("tested")
    trained_on = record.part("trained_on")
    if isinstance(tested, dict):
        data = {"data": trained_on.get("fingerprint"), "tested.data": record.data.fingerprint}
    else:
        data = {"data": record.data.fingerprint, "tested.data": None}
    stated = {
        "method": record.cell.method_name,
        "method.revision": record.part("method").get("revision"),
        "hparams": record.hparams,
        "backbone": record.part("backbone").get("fingerprint"),
        "shots": record.cell.shots,
        "seed": record.cell.seed,
        **data,
    }
    if further := record.provenance.get("backbones"):
        some = further if isinstance(further, list) else []
        stated["backbones"] = [one.get("fingerprint") for one in some if isinstance(one, dict)]
    protocol_fields = record.protocol.model_dump()
    stated |= {name: protocol_fields[name] for name in _OF_PROTOCOL if name in parts}
    protocol = parts.get("protocol")
    if isinstance(protocol, dict):
        stated |= {f"protocol.{name}": protocol_fields.get(name) for name in protocol}
    found = {**parts, "tested.data": tested.get("data") if isinstance(tested, dict) else None}
    if isinstance(protocol, dict):
        found |= {f"protocol.{name}": value for name, value in protocol.items()}
    return [
        f"{name}: its key is made of {found.get(name)!r}, its record says {value!r}"
        for name, value in stated.items()
        if found.get(name) != value
    ]


_OF_PROTOCOL = (
    "precision",
    "feature_precision",
    "views",
    "sampler",
    "validation",
    "selection",
    "shots_unit",
)


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
