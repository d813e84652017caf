"""Records as a run makes them, small and by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vipbench.results.records.plan import PlannedCell
from vipbench.results.records.predictions import Predictions
from vipbench.results.records.record import Record, json_sha256
from vipbench.results.store.store import Store
from vipbench.results.tables import Entry, Table

CLASSES = ["nevus", "melanoma", "keratosis"]


def key_of(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def record_dict(
    method: str = "vip",
    shots: int | str = 4,
    seed: int = 1,
    *,
    dataset: str = "toyderm",
    backbone: str = "toy-clip",
    metrics: Mapping[str, Any] | None = None,
    error: str | None = None,
    key: str | None = None,
) -> dict[str, Any]:
    """A record's JSON; change it before `Record.of`."""
    found: dict[str, Any] = {"accuracy": 0.5, "macro_f1": 0.4, "n": 10}
    hparams = {"n_ctx": 4, "lr": 0.002, "betas": [0.9, 0.999]}
    parts = {
        "method": "vip", "method.revision": 1, "hparams": hparams, "shots": shots, "seed": seed,
        "backbone": key_of(backbone), "data": key_of(dataset), "precision": "fp32",
        "row": key_of(method),  # so that rows of one method have keys of their own
    }  # fmt: skip
    return {
        "schema": 1,
        "key": key or json_sha256(parts),
        "status": "error" if error else "ok",
        "cell": {
            "backbone": backbone,
            "dataset": dataset,
            "method": method,
            "method_name": "vip",
            "shots": shots,
            "seed": seed,
        },
        "hparams": hparams,
        "recipe": {"optimizer": "sgd", "epochs": 50},
        "protocol": {
            "views": "per-epoch",
            "sampler": "nested",
            "validation": "min(k,4)",
            "selection": "last",
            "precision": "fp32",
            "shots_unit": "image",
        },
        "data": {
            "class_names": list(CLASSES),
            "train_counts": [6, 12, 12],
            "val_counts": [2, 2, 2],
            "test_counts": [2, 5, 3],
            "n_support": 12,
            "n_val": 6,
            "fingerprint": key_of(dataset),
            "licence": "CC0-1.0",
            "caption": "Drawn data.",
            "symptoms_sha256": key_of("symptoms"),
        },
        "provenance": {
            "vipbench": "0.1.0",
            "torch": "2.12.0",
            "device": "cpu",
            "method": {"plugin": "vipbench.vip", "revision": 1, "needs": ["symptoms"]},
            "backbone": {"name": backbone, "fingerprint": key_of(backbone)},
            "key_parts": parts,
        },
        "metrics": {} if error else found | dict(metrics or {}),
        "timing": {"train": 1.5},
        "history": [{"epoch": 0, "loss": 1.25}, {"epoch": 1, "loss": 0.75}],
        "notes": [],
        "error": {"type": error, "message": "it broke", "plugin": "p"} if error else None,
        "created": "2026-01-02T03:04:05+00:00",
    }


def make(*args: Any, **kwargs: Any) -> Record:
    return Record.of(record_dict(*args, **kwargs))


def scored(seed: int, method: str = "vip", shots: int | str = 4) -> tuple[Record, Predictions]:
    """A record with the predictions that its metrics come from."""
    from vipbench.results.records.metrics import compute_metrics

    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), [2, 5, 3])
    scores = rng.normal(size=(10, 3)).astype(np.float32)
    ids = [f"img/{i}.png" for i in range(10)]
    groups = [f"patient {i // 2}" for i in range(10)]
    metrics = compute_metrics(labels, scores, CLASSES)
    return make(method, shots, seed, metrics=metrics), Predictions(ids, groups, labels, scores)


def unscored(seed: int) -> tuple[Record, Predictions]:
    """A record whose metrics are made up: quick to make in a fresh process."""
    scores = np.full((10, 3), seed, dtype=np.float32)
    labels = np.repeat(np.arange(3), [2, 5, 3])
    return make(seed=seed), Predictions([str(i) for i in range(10)], None, labels, scores)


def planned(records: Sequence[Record], **changes: Any) -> list[PlannedCell]:
    """The plan of which these are the records."""
    return [PlannedCell.of(r, **changes) for r in records]


def planned_cell(
    key: str | None,
    backbone: str,
    dataset: str,
    method: str,
    shots: int | str,
    seed: int,
    **more: Any,
) -> PlannedCell:
    """A planned cell, its fields by position."""
    place = {"backbone": backbone, "dataset": dataset, "method": method}
    return PlannedCell(key=key, **place, shots=shots, seed=seed, **more)


def small() -> tuple[list[Record], list[PlannedCell]]:
    """Zero-shot, two methods at 1 and 16 shots and full, one seed of one entry missing."""

    def one(method: str, shots: int | str, seed: int, accuracy: float, f1: float) -> Record:
        return make(method, shots, seed, metrics={"accuracy": accuracy, "macro_f1": f1})

    records = [
        one("zero-shot", 0, 0, 0.4, 0.35),
        one("coop", "full", 1, 0.8, 0.75),
        one("coop", "full", 2, 0.9, 0.8),
        one("coop", 1, 1, 0.5, 0.45),
        one("coop", 1, 2, 0.7, 0.55),
        one("coop", 16, 1, 0.7, 0.6),
        one("vip", 1, 2, 0.6, 0.5),
        one("vip", 1, 1, 0.6, 0.5),
        one("vip", 16, 1, 0.8, 0.7),
        one("vip", 16, 2, 0.9, 0.75),
        one("vip", "full", 1, 0.85, 0.7),
        one("vip", "full", 2, 0.85, 0.7),
    ]
    cells = planned(records)
    cells.append(planned_cell(key_of("missing"), "toy-clip", "toyderm", "coop", 16, 2))
    return records, cells


def wide() -> tuple[list[Record], list[PlannedCell]]:
    """Two datasets and backbones, a pair that cannot be, a transductive method, a failed cell,
    unequal n, two versions of torch and of a setting, a leftover record."""
    records = []
    for dataset in ("toyderm", "chest_x&ray"):
        for backbone in ("toy-clip", "resnet"):
            for seed in (1, 2):
                records.append(make("probe", 4, seed, dataset=dataset, backbone=backbone))
    for seed in (1, 2, 3):
        value = record_dict("vip", 4, seed, metrics={"accuracy": 0.6 + seed / 100})
        value["protocol"]["views"] = 4
        value["provenance"]["torch"] = "2.13.0" if seed == 3 else "2.12.0"
        records.append(Record.of(value))
    for seed in (1, 2):
        value = record_dict("transclip", 4, seed, metrics={"accuracy": 0.9})
        value["provenance"]["method"]["needs"] = ["test_images"]
        records.append(Record.of(value))
    records.append(make("coop", 4, 1))
    records.append(make("coop", 4, 2, error="ValueError"))
    cells = planned(records)
    for dataset in ("toyderm", "chest_x&ray"):
        for seed in (1, 2):
            reason = "'vip' needs a text tower and 'resnet' has none"
            refused = {"status": "impossible", "reason": reason}
            cells.append(planned_cell(None, "resnet", dataset, "vip", 4, seed, **refused))
    records.append(make("coop", 4, 1, key=key_of("older settings")))
    records.append(make("coop", 8, 1))
    return records, cells


def filled(folder: Path) -> Path:
    with Store(folder) as store:
        for seed in (1, 2, 3):
            store.add(*scored(seed))
        store.add(make("coop", error="ValueError"))
        store.save_plan([PlannedCell.of(r) for r in store.records()])
    return folder / "results.sqlite"


def content(store: Store) -> Any:
    """All that a store says, as plain values."""
    pairs = []
    for record in store.records():
        p = store.predictions(record.key)
        predictions = p and (p.ids, p.groups, p.labels.tolist(), p.scores.tolist())
        pairs.append((record.to_json(), predictions))
    return pairs, store.status(), store.plan()


def entry_of(table: Table, method: str, shots: int | str, metric: str = "accuracy") -> Entry:
    row = [r.label for r in table.rows].index(method)
    places = [(c.metric, c.shots) for c in table.columns]
    return table.entries[row][places.index((metric, shots))]
