"""What a run of many cells costs the cluster's part of vipbench: cutting it, the files of its jobs,
the collector. No cell is computed and nothing is submitted; the figures of docs/cluster.md are
those of `python benchmarks/cluster_plan.py --cells 100000`.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np

from vipbench.engine.cluster.collect import Collector
from vipbench.engine.cluster.cut import MOST_PARTS, cut
from vipbench.engine.cluster.folder import SCHEMA, Part, Parts
from vipbench.engine.cluster.results import PartResults
from vipbench.engine.evaluation.stack_size import MOST_STACKED
from vipbench.results import Predictions, Record
from vipbench.results.records.metrics import compute_metrics
from vipbench.results.store.store import Store
from vipbench.runspec.run import RunSpec

CLASSES, IMAGES = ["nevus", "melanoma"], 60
# Parts that write between two rounds of the collector.
AT_ONCE = 32


@contextmanager
def timed(times: dict[str, list[float]], what: str) -> Iterator[None]:
    """Add wall and CPU seconds of the block."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    times.setdefault(what, [0.0, 0.0])
    times[what][0] += time.perf_counter() - wall
    times[what][1] += time.process_time() - cpu


def grid(cells: int) -> RunSpec:
    """A grid of about so many cells: 10 pairs of backbone and dataset, 20 methods, 4 shots."""
    seeds = max(1, cells // (2 * 5 * 20 * 4))
    return RunSpec.parse(
        {
            "backbones": [f"openclip:RN50/{i}" for i in range(2)],
            "datasets": [f"folder:data{i}" for i in range(5)],
            "methods": [f"m{i}" for i in range(20)],
            "shots": "1,2,4,8",
            "seeds": f"1-{seeds}",
        }
    )


@lru_cache
def scored(seed: int) -> tuple[Predictions, dict[str, object]]:
    """Made-up scores and their metrics."""
    labels = np.arange(IMAGES) % len(CLASSES)
    scores = np.random.default_rng(seed).normal(size=(IMAGES, len(CLASSES))).astype(np.float32)
    found = Predictions([f"{i}.png" for i in range(IMAGES)], None, labels, scores)
    return found, compute_metrics(labels, scores, CLASSES)


def record(place: tuple[str, str, str, int, int]) -> tuple[Record, Predictions]:
    """A result as a job writes it."""
    backbone, dataset, method, shots, seed = place
    key = hashlib.sha256(repr(place).encode()).hexdigest()
    predictions, metrics = scored(int(key[:2], 16))
    cell = {"backbone": backbone, "dataset": dataset, "method": method, "method_name": "ncm"}
    found = {
        "schema": 1, "key": key, "status": "ok", "cell": {**cell, "shots": shots, "seed": seed},
        "hparams": {}, "recipe": None, "metrics": metrics,
        "protocol": {
            "views": "none", "sampler": "nested", "validation": "min(k,4)", "selection": "last",
            "precision": "fp32", "shots_unit": "image",
        },
        "data": {
            "class_names": CLASSES, "train_counts": [30, 30], "val_counts": [4, 4],
            "test_counts": [30, 30], "n_support": 8, "n_val": 8, "fingerprint": "0" * 64,
            "licence": "", "caption": "", "symptoms_sha256": None,
        },
        "provenance": {"vipbench": "0", "method": {}, "backbone": {}, "dataset": {}},
        "timing": {"train": 1.0}, "created": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    return Record.of(found), predictions


def simulate(cells: int, folder: Path) -> None:
    """Cut, write as jobs do, collect, make the table; print what each took."""
    times: dict[str, list[float]] = {}
    spec = grid(cells)
    with timed(times, "cut"):
        pieces = cut(spec, MOST_PARTS)
    parts = Parts(folder)
    parts.folder.mkdir(parents=True)
    made = [Part(n, n, piece.cells, piece.without_support) for n, piece in enumerate(pieces)]
    run = {
        "schema": SCHEMA, "id": "01234567", "digest": "", "package": "", "cwd": "/", "lead": 1,
        "executor": {"name": "slurm"}, "environment": {}, "grants": {}, "encodes": [],
        "parts": [dataclasses.asdict(part) for part in made],
    }  # fmt: skip
    (parts.folder / "run.json").write_text(json.dumps(run))
    most_files = total = 0
    with Store(folder) as store:
        collector = Collector(parts, store)
        for begin in range(0, len(made), AT_ONCE):
            some = made[begin : begin + AT_ONCE]
            for part in some:
                own = pieces[part.number].spec
                places = [
                    (b, d, m.label, int(k), s)
                    for b in own.backbones
                    for d in own.datasets
                    for m in own.methods
                    for k in own.shots
                    for s in own.seeds
                ]
                brought = [record(place) for place in places]
                total += len(brought)
                with timed(times, "jobs write"):
                    results = PartResults(parts, part, print)
                    for start in range(0, len(brought), MOST_STACKED):
                        results.add_many(brought[start : start + MOST_STACKED])
            folders = [len(names) for _, _, names in os.walk(parts.folder)]
            most_files = max(most_files, *folders)
            with timed(times, "collect"):
                collector.collect([part.number for part in some])
                collector.remove([part.number for part in some])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with timed(times, "table"):
            store.records(history=False)
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    size = (folder / "results.sqlite").stat().st_size
    print(f"{total:,} cells in {len(made)} parts of at most {max(p.cells for p in made)} cells")
    for what, (wall, cpu) in times.items():
        each = 1000 * wall / total
        print(f"{what:12} {wall:8.2f} s wall, {cpu:8.2f} s CPU, {each:.3f} ms a cell")
    print(f"files in a folder: at most {most_files:,}")
    print(f"memory of a table's records: {memory / total:,.0f} bytes each")
    print(f"results.sqlite: {size / 1e6:,.0f} MB")


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; default $TMPDIR")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        simulate(given.cells, Path(folder) / "out")


if __name__ == "__main__":
    main()
