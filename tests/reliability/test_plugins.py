"""Thirty plugins that misbehave beside good ones: each costs its own cells and nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.reliability import grid
from vipbench.engine.workers import driver
from vipbench.results import Record
from vipbench.results.store.store import Store
from vipbench.runspec.run import RunSpec

PLUGIN = '''
import ctypes, os, random, signal, sys, threading, time
import numpy as np
import torch
import vipbench
from vipbench import api

class Base(api.Method):
    """Nearest class mean, or a misdeed."""
    kind = "TF"
    needs = frozenset()

    def prepare(self, support):
        rows = [support.plain[support.labels == c].mean(0) for c in range(support.n_classes)]
        self.means = torch.stack(rows)

    def forward(self, x):
        return x @ self.means.T

def good(self, x):
    return x @ self.means.T

def make(label, **attributes):
    return type(label.title(), (Base,), {"name": label, **attributes})

def towers(task):
    return task.image_backbone._model

def raises(self, *_):
    raise RuntimeError("it broke here")

def base_exception(self, x):
    raise BaseException("not even an Exception")

def interrupts(self, x):
    raise KeyboardInterrupt

def recurses(self, x):
    return recurses(self, x)

def leaks(self, x):
    kept = []
    while True:
        kept.append(bytearray(os.urandom(1) * 50_000_000))
        time.sleep(0.01)

def no_memory(self, x):
    raise MemoryError("injected")

def changes_weights(self, x):
    with torch.no_grad():
        next(towers(self.task).parameters()).add_(1e-3)
    return good(self, x)

def changes_data(self, x):
    list(towers(self.task).parameters())[-1].data.mul_(2)
    return good(self, x)

def changes_and_raises(self, x):
    list(towers(self.task).parameters())[3].data.zero_()
    raise RuntimeError("and then it broke")

class Builds(Base):
    name = "changes-while-built"
    def __init__(self, task, hparams):
        super().__init__(task, hparams)
        list(towers(task).parameters())[2].data.zero_()

class Texts(Base):
    name = "changes-texts"
    needs = frozenset({"text"})
    def finish(self, support):
        self.task.text_features(list(self.task.names)).mul_(3)

def changes_test(self, x):
    x.mul_(2)
    return good(self, x)

def writes_pipe(self, x):
    for fd in range(3, 20):
        try:
            os.write(fd, b"no event\\n")
        except OSError:
            pass
    return good(self, x)

def seeds(self, x):
    torch.manual_seed(0)
    return good(self, x)

def draws(self, x):
    return good(self, x) + torch.randn(len(x), 2)

def numpy_seeds(self, x):
    np.random.seed(0)
    return good(self, x)

def python_draws(self, x):
    random.random()
    return good(self, x)

class Recipe(Base):
    name = "recipe"
    class HParams(api.HParams):
        def recipe(self, info):
            raise RuntimeError("no recipe today")

METHODS = [
    Recipe,
    make("good-first"),
    make("raises", forward=raises),
    make("refuses", prepare=raises),
    make("no-finish", finish=raises),
    make("base-exception", forward=base_exception),
    make("interrupts", forward=interrupts),
    make("recurses", forward=recurses),
    make("nan", forward=lambda self, x: good(self, x) * float("nan")),
    make("inf", forward=lambda self, x: good(self, x) + float("inf")),
    make("shape", forward=lambda self, x: good(self, x)[:, :1]),
    make("rows", forward=lambda self, x: good(self, x)[1:]),
    make("scalar", forward=lambda self, x: good(self, x).sum()),
    make("integers", forward=lambda self, x: good(self, x).long()),
    make("none", forward=lambda self, x: None),
    make("good-second"),
    make("array", predict=lambda self, x: good(self, x).numpy()),
    make("exits", forward=lambda self, x: sys.exit(3)),
    make("exits-at-once", forward=lambda self, x: os._exit(7)),
    make("aborts", forward=lambda self, x: os.abort()),
    make("kills-itself", forward=lambda self, x: os.kill(os.getpid(), signal.SIGKILL)),
    make("segfaults", forward=lambda self, x: ctypes.string_at(0)),
    make("hangs", forward=lambda self, x: time.sleep(600)),
    make("good-third"),
    make("leaks", forward=leaks),
    make("no-memory", forward=no_memory),
    make("changes-weights", forward=changes_weights),
    make("changes-data", forward=changes_data),
    make("changes-and-raises", forward=changes_and_raises),
    Builds,
    Texts,
    make("changes-test", forward=changes_test),
    make("writes-pipe", forward=writes_pipe),
    make("seeds", forward=seeds),
    make("draws", forward=draws),
    make("numpy-seeds", forward=numpy_seeds),
    make("python-draws", forward=python_draws),
    make("chatters", forward=lambda self, x: print("x" * 20_000_000) or good(self, x)),
    make("good-last"),
]

@vipbench.hookimpl
def register_methods(register):
    for method in METHODS:
        register(method)
'''
GOOD = ["good-first", "good-second", "good-third", "chatters", "good-last"]
# What the error of each says.
BAD = {
    "recipe": "no recipe today",
    "raises": "it broke here",
    "refuses": "it broke here",
    "no-finish": "it broke here",
    "base-exception": "",
    "interrupts": "",
    "recurses": "recursion",
    "nan": "not finite",
    "inf": "not finite",
    "shape": "(10, 1)",
    "rows": "(9, 2)",
    "scalar": "zero-dimensional",
    "integers": "int64",
    "none": "NoneType",
    "array": "ndarray",
    "exits": "",
    "exits-at-once": "exit status 7",
    "aborts": "SIGABRT",
    "kills-itself": "SIGKILL",
    "segfaults": "SIGSEGV",
    "hangs": "no progress in 3 s",
    "leaks": "GB of memory",
    "no-memory": "injected",
    "changes-weights": "frozen weights",
    "changes-data": "frozen weights",
    "changes-and-raises": "frozen weights",
    "changes-while-built": "frozen weights",
    "changes-texts": "features of texts",
    "changes-test": "in place",
    "writes-pipe": "",
    "seeds": "seeded a global",
    "draws": "drew from a global",
    "numpy-seeds": "global random",
    "python-draws": "global random",
}
# Some of each kind, for every day.
SHORT = [
    "recipe",
    "refuses",
    "changes-texts",
    "changes-while-built",
    "draws",
    "numpy-seeds",
    "hangs",
]


class Listener(driver.Observer):
    def __init__(self) -> None:
        self.reported: list[tuple[float, Record]] = []

    def cell_done(self, cell: driver.PlannedCell, record: Record) -> None:
        self.reported.append((time.monotonic(), record))


def spec(data: Path, out: str, methods: list[str]) -> RunSpec:
    return RunSpec.parse(
        {
            "methods": methods,
            "datasets": [f"npz:{data / 'toy.npz'}"],
            "backbones": ["tiny-clip"],
            "shots": [1],
            "seeds": [1],
            "out": data / out,
            "plugins_dir": data / "plugins",
            "cell_timeout": 3,
            "views": "none",
        }
    )


def run_beside(data: Path, bad: list[str]) -> None:
    (data / "plugins" / "moods.py").write_text(PLUGIN, encoding="utf-8")
    # A good one first, between them, and last.
    half = len(bad) // 2
    names = ["good-first", *bad[:half], "good-second", *bad[half:], "good-last", "chatters"]
    listener = Listener()
    outcome = driver.run(spec(data, "beside", names), listener)
    with Store(data / "beside", readonly=True) as store:
        found = {r.cell.method: r for r in store.records()}
    assert {name for name, r in found.items() if r.ok} == set(names) - set(bad)
    assert (outcome.done, outcome.failed) == (len(names) - len(bad), len(bad))
    for name in bad:
        error = found[name].error
        assert error is not None
        assert (error.plugin, error.file) == ("moods", "moods.py")
        assert "plugin 'moods' (moods.py)" in error.message
        assert BAD[name] in error.message, (name, error.message)
    alone = [name for name in names if name not in bad]
    driver.run(spec(data, "alone", alone))
    assert grid.hashes(data / "beside") == grid.hashes(data / "alone")
    if "hangs" in bad:
        [at] = [i for i, (_, r) in enumerate(listener.reported) if r.cell.method == "hangs"]
        gap = listener.reported[at + 1][0] - listener.reported[at][0]
        print(f"the next cell was done {gap:.1f} s after the hanging one ended")
        assert gap < 5 * (os.getloadavg()[0] / (os.cpu_count() or 1) + 1)


def test_seven_that_misbehave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_beside(grid.write_data(tmp_path), SHORT)


@pytest.mark.reliability
@pytest.mark.timeout(1200)
def test_all_that_misbehave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIPBENCH_WORKER_GB", "1.5")
    assert len(BAD) >= 30
    run_beside(grid.write_data(tmp_path), list(BAD))


HANGS = """
import time
import vipbench
from vipbench import api

class Hangs(api.Method):
    '''Never comes back.'''
    name = "hangs"
    kind = "TF"
    needs = frozenset()

    def prepare(self, support):
        time.sleep(600)

    def forward(self, x):
        return x[:, :2]

@vipbench.hookimpl
def register_methods(register):
    register(Hangs)
"""


def test_the_next_cell_starts_within_five_seconds_of_a_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spare worker is started before the limit, so that the next cell need not wait for it."""
    data = grid.write_data(tmp_path)
    (data / "plugins" / "hangs.py").write_text(HANGS, encoding="utf-8")
    log = tmp_path / "begun"
    monkeypatch.setenv("STEADY_LOG", str(log))
    ended: list[float] = []

    class Clock(driver.Observer):
        def cell_done(self, cell: driver.PlannedCell, record: Record) -> None:
            if record.error is not None and record.error.type == "Timeout":
                ended.append(time.time())
                assert not log.exists()

    limit = spec(data, "out", ["hangs", "steady"]).model_copy(update={"cell_timeout": 12.0})
    outcome = driver.run(limit, Clock())
    assert (outcome.done, outcome.failed) == (1, 1)
    gap = log.stat().st_mtime - ended[0]
    print(f"the next cell was begun {gap:.1f} s after the limit")
    assert gap < 5
