"""Every method on the device: does it run, and does it give what this machine's CPU gives?"""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.gpu.worker import Bench, Line
from vipbench.api import Split
from vipbench.engine.evaluation.runner import GroupRunner
from vipbench.engine.evaluation.scoring import Finished
from vipbench.engine.features.features import Features
from vipbench.engine.planning.cells import LoadedCell, make_rows, plan_cells
from vipbench.engine.planning.loading import (
    Beside,
    LoadedBackbone,
    LoadedDataset,
    load_backbone,
    load_dataset,
)
from vipbench.engine.planning.protocols import Scene
from vipbench.plugins.registry import Registry, load_registry
from vipbench.runspec.run import RunSpec

# How far losses and logits may be from the CPU's, of the largest of them or of 1.
LIMIT = 1e-4
SHOTS, SEEDS = 2, (1, 2)
# Lengths of trainings, by the hyperparameter that a method has for it.
SHORT = {"epochs": 2, "iterations": 100, "max_iterations": 10}


def run(bench: Bench) -> Iterator[Line]:
    """A line for each method: tiny-clip, 2 shots, 2 epochs, two seeds stacked and one by one."""
    registry = load_registry()
    names = sorted(
        registry.methods, key=lambda name: (registry.method(name)[0].inputs == "images", name)
    )
    data = some_of(load_dataset(registry, spec_of("zero-shot", {}), "synthderm"), bench.quick)
    here = Place(registry, data, bench.device)
    there = Place(registry, data, torch.device("cpu"))
    for name in names:
        try:
            yield {"method": name, **compare(registry, name, here, there)}
        except Exception as error:
            traceback.print_exc()
            text = f"{type(error).__name__}: {error}"[:2000]
            yield {"method": name, "status": "failed", "error": text}


class Place:
    """A backbone and a runner on one device."""

    def __init__(self, registry: Registry, data: LoadedDataset, device: torch.device) -> None:
        self.data = data
        self.loaded: LoadedBackbone = load_backbone(registry, "tiny-clip")
        self.loaded.backbone.to(device)
        self.notes: list[str] = []
        features = Features(self.loaded.backbone, data.splits, data.fingerprint)
        self.runner = GroupRunner(features, self.notes.append)
        self.beside = Beside(registry, [self.loaded], device)

    def cells(self, registry: Registry, spec: RunSpec) -> list[LoadedCell]:
        """The cells of the only method of `spec`."""
        [row] = make_rows(registry, spec.methods)
        return plan_cells(spec, row, Scene(self.data), self.loaded, self.beside)


def compare(registry: Registry, name: str, here: Place, there: Place) -> Line:
    """What the device gives beside the CPU, and stacked cells beside single ones."""
    method = registry.method(name)[0]
    fields = {field.name for field in dataclasses.fields(method.HParams)}
    # Cells on images never train together.
    seeds = SEEDS if method.inputs == "features" else SEEDS[:1]
    spec = spec_of(name, {k: v for k, v in SHORT.items() if k in fields}, seeds)
    mine, theirs = here.cells(registry, spec), there.cells(registry, spec)
    if reason := mine[0].impossible:
        return {"status": "failed", "error": reason}
    here.notes.clear()
    begin = time.perf_counter()
    found = [*chain.from_iterable(here.runner.run(mine))]
    taken = time.perf_counter() - begin
    begin = time.perf_counter()
    wanted = [*chain.from_iterable(there.runner.run(theirs))]
    cpu = time.perf_counter() - begin
    for one in (*found, *wanted):
        if not one.record.ok:
            return {"status": "failed", "error": str(one.record.error)[:2000]}
    alone = [here.runner.run_alone(cell) for cell in mine] if len(mine) > 1 else found
    logits = [furthest(scores(a), scores(b)) for a, b in zip(found, wanted, strict=True)]
    losses = [furthest(losses_of(a), losses_of(b)) for a, b in zip(found, wanted, strict=True)]
    looped = [furthest(scores(a), scores(b)) for a, b in zip(found, alone, strict=True)]
    same = [
        float(np.mean(scores(a).argmax(1) == scores(b).argmax(1)))
        for a, b in zip(found, wanted, strict=True)
    ]
    worst = {"logits": max(logits), "losses": max(losses), "stacked": max(looped)}
    return {
        "status": "ok" if all(value <= LIMIT for value in worst.values()) else "wrong",
        "apart": worst, "limit": LIMIT, "equal_predictions": float(np.mean(same)),
        "stacked_cells": found[0].record.provenance["stacked_cells"],
        "notes": list(here.notes), "device_s": taken, "cpu_s": cpu,
    }  # fmt: skip


def spec_of(name: str, hparams: Mapping[str, Any], seeds: Sequence[int] = SEEDS) -> RunSpec:
    return RunSpec.parse({
        "methods": [{"name": name, **hparams}], "datasets": ["synthderm"],
        "backbones": ["tiny-clip"], "shots": [SHOTS], "seeds": list(seeds), "profile": "quick",
    })  # fmt: skip


def some_of(data: LoadedDataset, quick: bool) -> LoadedDataset:
    """The data with fewer test images, of all classes in turn."""
    keep = 12 if quick else 96
    split = data.splits["test"]
    rows = np.linspace(0, len(split) - 1, keep).astype(int).tolist()
    test = Split(
        [split.images[i] for i in rows], split.labels[rows], tuple(split.ids[i] for i in rows),
        None if split.groups is None else tuple(split.groups[i] for i in rows),
    )  # fmt: skip
    splits = {**data.splits, "test": test}
    return dataclasses.replace(data, splits=splits, fingerprint=f"{data.fingerprint}-{keep}")


def scores(done: Finished) -> npt.NDArray[np.float32]:
    """(N,C)."""
    assert done.predictions is not None
    return done.predictions.scores


def losses_of(done: Finished) -> Sequence[float]:
    """The mean loss of each epoch; empty where the engine trains nothing."""
    return [entry["loss"] for entry in done.record.history if "loss" in entry]


def furthest(a: Any, b: Any) -> float:
    """The largest difference, of the largest value or of 1."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        return float("inf")
    return float(np.abs(a - b).max() / max(1.0, np.abs(b).max())) if a.size else 0.0
