"""Small real data and a plugin file with methods that behave in ways worth trying."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

PLUGIN = '''
"""Methods that a run must cope with."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import vipbench
from vipbench import api


class Boom(api.Method):
    """Fails at two shots."""

    name = "boom"
    kind = "TF"
    needs = frozenset()

    def prepare(self, support):
        if support.shots == 2:
            raise RuntimeError("no\\nluck \\x1b[31m today")

    def forward(self, x):
        return x[:, : self.task.n_classes]


class Slow(api.Method):
    """Takes its time, and says which process it runs in."""

    name = "slow"
    kind = "TF"
    needs = frozenset()

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """tag: makes a row of its own. seconds: what a cell takes."""

        tag: int = 0
        seconds: float = 0.3

    def fit(self, support):
        pids = Path(os.environ["TOY_PIDS"])
        with pids.open("a") as file:
            file.write(f"{os.getpid()}\\n")
        time.sleep(self.hparams.seconds)

    def forward(self, x):
        return x[:, : self.task.n_classes]


@vipbench.hookimpl
def register_methods(register):
    register(Boom)
    register(Slow)
'''


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `toy.npz`, two classes told apart by brightness, and `plugins/toy.py`."""
    folder = tmp_path_factory.mktemp("toy")
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 12), ("val", 4), ("test", 10)):
        labels = np.arange(count) % 2
        noise = rng.integers(0, 100, (count, 28, 28))
        arrays[f"{split}_images"] = (noise + 120 * labels[:, None, None]).astype(np.uint8)
        arrays[f"{split}_labels"] = labels[:, None].astype(np.uint8)
    np.savez(folder / "toy.npz", **arrays)
    (folder / "toy.yaml").write_text("class_names: [dark, bright]\n")
    (folder / "plugins").mkdir()
    (folder / "plugins" / "toy.py").write_text(PLUGIN)
    return folder
