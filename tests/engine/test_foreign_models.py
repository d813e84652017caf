"""A method that brings a model of its own is refused; what looks like one and is none is not."""

from __future__ import annotations

import pytest

from vipbench.engine.workers import driver
from vipbench.results import Record, Store
from vipbench.runspec.run import RunSpec

HEAD = '''
import copy
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

import vipbench
from vipbench import api
from vipbench.plugins.registry import load_registry


def network(width, out=None):
    return nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, out or width))


def quiet(*shape):
    """A layer that draws nothing."""
    layer = nn.utils.skip_init(nn.Linear, *shape)
    nn.init.constant_(layer.weight, 0.01)
    nn.init.zeros_(layer.bias)
    return layer


class Linear(api.Method):
    kind = "AD"
    needs = frozenset()

    @dataclass(frozen=True)
    class HParams(api.HParams):
        def recipe(self, info):
            return api.Recipe(lr=0.1, epochs=2)

    def __init__(self, task, hparams):
        super().__init__(task, hparams)
        self.weight = nn.Parameter(task.normal("weight", task.n_classes, task.info.dim))
        self.make(task)

    def make(self, task):
        pass

    def features(self, x):
        return x

    def forward(self, x):
        return F.normalize(self.features(x), dim=-1) @ self.weight.T


class Free(Linear):
    """Trains nothing."""

    @dataclass(frozen=True)
    class HParams(api.HParams):
        pass
'''
FOREIGN = {
    "frozen": """
    def make(self, task):
        self.net = network(task.info.dim).requires_grad_(False)

    def features(self, x):
        return self.net(x)
""",
    "no-grad": """
    def make(self, task):
        self.net = network(task.info.dim)

    def features(self, x):
        with torch.no_grad():
            return self.net(x)
""",
    "listed": """
    def make(self, task):
        self.nets = [{"a": network(task.info.dim)}]

    def features(self, x):
        return self.nets[0]["a"](x)
""",
    "lazily": """
    def predict(self, x):
        net = nn.Sequential(quiet(x.shape[1], 64), quiet(64, x.shape[1]))
        return self(net(x))
""",
    "global": """
    @staticmethod
    @cache
    def net(width):
        return nn.Sequential(quiet(width, 64), quiet(64, width)).eval()

    def prepare(self, support):
        self.mean = self.net(support.plain.shape[1])(support.plain).mean(0).detach()
""",
    "backbone": """
    def make(self, task):
        self.towers = [load_registry().backbone("tiny-clip")[0]]
""",
    "backbone-in-prepare": """
    def prepare(self, support):
        load_registry().backbone("tiny-clip")[0]
""",
    "state": """
    def make(self, task):
        self.state = {f"w{i}": torch.ones(37 + i, 41) for i in range(8)}
""",
}
OWN = {
    "cache": """
    def prepare(self, support):
        self.keys = support.plain
        self.by_class = [support.plain[support.labels == c] for c in range(self.task.n_classes)]
        self.project = torch.linalg.qr(support.plain.T)[0]
        self.drawn = self.task.normal("drawn", 50, 60)
""",
    "adapter": """
    def make(self, task):
        self.net = network(task.info.dim)

    def features(self, x):
        return x + self.net(x)
""",
    "teacher": """
    def make(self, task):
        self.net = network(task.info.dim)
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)

    def features(self, x):
        return x + self.net(x) + self.teacher(x)
""",
    "random-layer": """
    def make(self, task):
        self.net = nn.Sequential(task.linear("a", task.info.dim, 64),
                                 task.linear("b", 64, task.info.dim)).requires_grad_(False)

    def features(self, x):
        return self.net(x)
""",
    "projection": """
    def make(self, task):
        self.net = nn.Linear(task.info.dim, task.info.dim).requires_grad_(False)

    def features(self, x):
        return self.net(x)
""",
    "fitted": """
    def fit(self, support):
        width = support.plain.shape[1]
        net = nn.Sequential(quiet(width, 64), quiet(64, width))
        optimizer = torch.optim.SGD([self.weight, *net.parameters()], 0.1)
        for _ in range(2):
            loss = F.cross_entropy(self(net(support.plain)), support.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
""",
}


def source() -> str:
    text, names = HEAD, []
    for name, body in (FOREIGN | OWN).items():
        for base in ("Linear", "Free"):
            if base == "Free" and name in ("adapter", "teacher", "fitted"):
                continue
            names.append(f"{base}{len(names)}")
            text += f'\n\nclass {names[-1]}({base}):\n    name = "{base.lower()}-{name}"\n{body}'
    return text + (
        "\n\n@vipbench.hookimpl\ndef register_methods(register):\n"
        f"    for method in ({', '.join(names)}):\n        register(method)\n"
    )


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "plugins").mkdir()
    (folder / "plugins" / "models.py").write_text(source(), encoding="utf-8")
    methods = [f"linear-{name}" for name in FOREIGN | OWN]
    methods += [f"free-{n}" for n in FOREIGN | OWN if n not in ("adapter", "teacher", "fitted")]
    driver.run(
        RunSpec.parse(
            {
                "methods": methods, "datasets": ["synthderm"], "backbones": ["tiny-clip"],
                "shots": [1, 2], "seeds": [1], "views": "none", "out": folder / "out",
                "plugins_dir": folder / "plugins",
            }
        )
    )  # fmt: skip
    with Store(folder / "out", readonly=True) as store:
        return {r.cell.method: r for r in store.records()}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_model_of_its_own_is_refused(records: dict[str, Record], name: str) -> None:
    for kind in ("linear", "free"):
        error = records[f"{kind}-{name}"].error
        assert error is not None, kind
        assert error.type == "ForeignModelError", error.message
        assert "HParams.backbones()" in error.message


@pytest.mark.parametrize("name", OWN)
def test_what_is_its_own_is_not(records: dict[str, Record], name: str) -> None:
    for kind in ("linear", "free"):
        if f"{kind}-{name}" in records:
            assert records[f"{kind}-{name}"].ok, records[f"{kind}-{name}"].error
