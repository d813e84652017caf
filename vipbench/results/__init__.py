"""Records, their store, metrics and tables."""

from __future__ import annotations

from vipbench.results.records.metrics import METRICS, Metric, compute_metrics
from vipbench.results.records.plan import PlannedCell
from vipbench.results.records.predictions import Predictions
from vipbench.results.records.record import Record, RecordError
from vipbench.results.store.lock import StoreError
from vipbench.results.store.store import Store

__all__ = [
    "METRICS",
    "Metric",
    "PlannedCell",
    "Predictions",
    "Record",
    "RecordError",
    "Store",
    "StoreError",
    "compute_metrics",
]
