"""What is written down when cells of one group end their workers, and others only fail."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from vipbench.engine.workers import driver
from vipbench.results import Record, Store
from vipbench.runspec.run import RunSpec

PLUGIN = '''
import os
import torch
import vipbench
from vipbench import api

class Moody(api.Method):
    """Fails at one shot, ends its process at two and more."""
    name = "moody"
    kind = "TF"
    needs = frozenset()

    def prepare(self, support):
        if support.shots > 1:
            os._exit(7)
        raise RuntimeError("it broke here")

    def forward(self, x):
        return torch.zeros(len(x), self.task.n_classes)

@vipbench.hookimpl
def register_methods(register):
    register(Moody)
'''


class Listener(driver.Observer):
    def __init__(self) -> None:
        self.keys: list[str] = []

    def cell_done(self, cell: driver.PlannedCell, record: Record) -> None:
        self.keys.append(record.key)


def test_each_cell_ends_once_and_untried_ones_say_so(tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "moody.py").write_text(PLUGIN, encoding="utf-8")
    spec = RunSpec.parse(
        {
            "methods": ["moody"],
            "datasets": ["synthderm"],
            "backbones": ["tiny-clip"],
            "shots": [1, 2, 4, 8],
            "seeds": [1],
            "out": tmp_path / "out",
            "plugins_dir": tmp_path / "plugins",
            "views": "none",
        }
    )
    listener = Listener()
    outcome = driver.run(spec, listener)
    assert (outcome.done, outcome.failed) == (0, 4)
    assert len(listener.keys) == len(set(listener.keys)) == 4
    with Store(tmp_path / "out", readonly=True) as store:
        errors = {r.cell.shots: r.error for r in store.records()}
    output = {shots: (error.type, error.message) for shots, error in errors.items() if error}
    assert output[1][0] == "RuntimeError"
    for shots in (2, 4):
        assert output[shots][0] == "WorkerDied"
        assert "status 7" in output[shots][1]
    assert output[8][0] == "NotTried"
    assert "status 7" in output[8][1]


WAITS = """
import pathlib
import time
import torch
import vipbench
from vipbench import api

calls = []

class Waits(api.Method):
    name = "waits"
    kind = "TF"
    needs = frozenset()

    def prepare(self, support):
        calls.append(self)
        if len(calls) == 1:
            raise RuntimeError("not together")
        while len(calls) == 3 and not pathlib.Path(__file__).with_name("go").exists():
            time.sleep(0.02)

    def forward(self, x):
        return torch.zeros(len(x), self.task.n_classes)

@vipbench.hookimpl
def register_methods(register):
    register(Waits)
"""


class Interrupter(driver.Observer):
    """Lets the second cell end after the first was taken, and only then gives the signal."""

    def __init__(self, go: Path) -> None:
        self.go = go

    def cell_done(self, cell: driver.PlannedCell, record: Record) -> None:
        if not self.go.exists():
            self.go.touch()
            time.sleep(2)
            os.kill(os.getpid(), signal.SIGINT)


def test_cells_that_ended_before_a_signal_are_handed_in_after_it(tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "waits.py").write_text(WAITS, encoding="utf-8")
    spec = RunSpec.parse(
        {"methods": ["waits"], "datasets": ["synthderm"], "backbones": ["tiny-clip"],
         "shots": [1], "seeds": [1, 2], "out": tmp_path / "out",
         "plugins_dir": tmp_path / "plugins", "views": "none"}
    )  # fmt: skip
    outcome = driver.run(spec, Interrupter(tmp_path / "plugins" / "go"))
    assert (outcome.signal, outcome.done, outcome.failed) == (signal.SIGINT, 2, 0)
    with Store(tmp_path / "out", readonly=True) as store:
        assert len([record for record in store.records() if record.ok]) == 2
