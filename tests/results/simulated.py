"""Folders of records whose scores come from a model with known effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.results.samples import CLASSES, key_of, planned, record_dict
from vipbench.results.records.metrics import compute_metrics
from vipbench.results.records.predictions import Predictions
from vipbench.results.records.record import Record
from vipbench.results.store.store import Store

GAIN = {"zero-shot": 0.0, "coop": 0.5, "linear-probe": 0.1, "vip": 1.1}


def folder(
    out: Path,
    *,
    methods: Mapping[str, float] = GAIN,
    datasets: Sequence[str] = ("toyderm",),
    shots: Sequence[int | str] = (1, 4, 16),
    seeds: Sequence[int] = (1, 2, 3),
    n: int = 240,
    per_patient: int = 1,
    hparams: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """A results folder: methods with `methods`' gain over zero-shot, more of it at more shots."""
    pairs = []
    for d, dataset in enumerate(datasets):
        rng = np.random.default_rng([d, n])
        labels = np.arange(n) % 3
        hard = rng.normal(0, 0.8, (n, 3))
        ids = [f"{i}.png" for i in range(n)]
        groups = [f"p{i // per_patient}" for i in range(n)] if per_patient > 1 else None
        for method, gain in methods.items():
            cells = [(0, 0)] if method == "zero-shot" else [(k, s) for k in shots for s in seeds]
            for k, seed in cells:
                steps = 0 if k == 0 else 3 if k == "full" else np.log2(int(k) + 1) / 2
                draw = np.random.default_rng([d, seed, len(method)])
                lift = 0.8 + gain * steps + draw.normal(0, 0.1) * (k != 0)
                noise = draw.normal(0, 1, (n, 3))
                scores = (2 * (np.eye(3)[labels] * lift + hard + noise)).astype(np.float32)
                value = record_dict(method, k, seed, dataset=dataset)
                value["cell"]["method_name"] = method.partition("[")[0]
                value["data"]["test_counts"] = np.bincount(labels).tolist()
                value["data"]["train_counts"] = [30, 20, 10]
                value["metrics"] = compute_metrics(labels, scores, CLASSES)
                value["hparams"] |= dict((hparams or {}).get(method, {}))
                value["provenance"]["method"]["needs"] = ["symptoms"] if "vip" in method else []
                value["key"] = key_of(dataset, method, k, seed, n)
                pairs.append((Record.of(value), Predictions(ids, groups, labels, scores)))
    with Store(out) as store:
        store.add_many(pairs)
        store.save_plan(planned([record for record, _ in pairs]))
    return out
