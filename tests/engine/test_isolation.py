"""A plugin that fails, in whatever way, costs its own cells and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vipbench.engine.workers import driver
from vipbench.results import Record, Store
from vipbench.runspec.run import RunSpec

PLUGIN = '''
import os, sys, time
import torch
import vipbench
from vipbench import api

class Base(api.Method):
    """Nearest class mean, or a failure."""
    kind = "TF"
    needs = frozenset()

    def prepare(self, support):
        rows = [support.plain[support.labels == c].mean(0) for c in range(support.n_classes)]
        self.means = torch.stack(rows)

    def forward(self, x):
        return x @ self.means.T

def make(label, **attributes):
    return type(label.title(), (Base,), {"name": label, **attributes})

def raise_(self, *_):
    raise RuntimeError("it broke here")

METHODS = [
    make("good"),
    make("raises", forward=raise_),
    make("refuses", prepare=raise_),
    make("nan", forward=lambda self, x: x @ self.means.T * float("nan")),
    make("shape", forward=lambda self, x: (x @ self.means.T)[:, :2]),
    make("integers", forward=lambda self, x: (x @ self.means.T).long()),
    make("exits", forward=lambda self, x: os._exit(7)),
    make("hangs", forward=lambda self, x: time.sleep(600)),
    make("chatters", forward=lambda self, x: print("x" * 100_000_0) or x @ self.means.T),
    make("last"),
]

@vipbench.hookimpl
def register_methods(register):
    for method in METHODS:
        register(method)
'''
NAMES = "good raises refuses nan shape integers exits hangs chatters last".split()
SAID = {
    "raises": "it broke here",
    "refuses": "it broke here",
    "nan": "not finite",
    "shape": "(300, 2)",
    "integers": "int64",
    "exits": "exit status 7",
    "hangs": "no progress in 4 s",
}


class Listener(driver.Observer):
    def __init__(self) -> None:
        self.records: list[Record] = []

    def cell_done(self, cell: driver.PlannedCell, record: Record) -> None:
        self.records.append(record)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("isolation")
    (folder / "plugins").mkdir()
    (folder / "plugins" / "moods.py").write_text(PLUGIN, encoding="utf-8")
    return folder


def spec(folder: Path, out: str, methods: list[str]) -> RunSpec:
    return RunSpec.parse(
        {
            "methods": methods,
            "datasets": ["synthderm"],
            "backbones": ["tiny-clip"],
            "shots": [1],
            "seeds": [1, 2],
            "out": folder / out,
            "plugins_dir": folder / "plugins",
            "cell_timeout": 4,
            "views": "none",
        }
    )


def test_failures_stay_with_their_cells(folder: Path) -> None:
    listener = Listener()
    outcome = driver.run(spec(folder, "all", NAMES), listener)
    assert (outcome.done, outcome.failed) == (6, 14)
    with Store(folder / "all", readonly=True) as store:
        records = store.records()
        assert len(records) == 20
        for record in records:
            output = SAID.get(record.cell.method)
            if output is None:
                assert record.ok, record.error
                continue
            assert record.error is not None
            assert output in record.error.message
            assert record.error.plugin == "moods"
            assert record.error.file == "moods.py"
            assert not record.metrics
            assert store.predictions(record.key) is None
        scores = {r.slot: store.predictions(r.key).scores for r in records if r.ok}  # type: ignore[union-attr]

    alone = driver.run(spec(folder, "alone", ["good"]))
    assert (alone.done, alone.failed) == (2, 0)
    with Store(folder / "alone", readonly=True) as store:
        for record in store.records():
            found = store.predictions(record.key)
            assert found is not None
            np.testing.assert_array_equal(found.scores, scores[record.slot])

    # Again: what is done stays, what failed is tried again.
    again = driver.plan(spec(folder, "all", NAMES))
    assert len(again.of("done")) == 6
    assert all(cell.reason for cell in again.of("todo"))
