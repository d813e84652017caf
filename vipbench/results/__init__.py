"""Records, their store, metrics and tables. No torch here."""

from __future__ import annotations

from vipbench.results.lock import StoreError
from vipbench.results.metrics import METRICS, Metric, compute_metrics
from vipbench.results.plan import PlanCell
from vipbench.results.predictions import Predictions
from vipbench.results.record import Record, RecordError
from vipbench.results.store import Store

__all__ = [
    "METRICS",
    "Metric",
    "PlanCell",
    "Predictions",
    "Record",
    "RecordError",
    "Store",
    "StoreError",
    "compute_metrics",
]
