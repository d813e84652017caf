"""What a method may rely on in training, in runs of a plugin: batches without padding, and state
that `after_step` changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from vipbench.engine.workers import driver
from vipbench.results import Record, Store
from vipbench.runspec.run import RunSpec

PLUGIN = '''
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import helper
import vipbench
from vipbench import api


class Linear(api.Method):
    """A linear layer on features."""

    kind = "AD"
    needs = frozenset()
    drop_last = True

    @dataclass(frozen=True)
    class HParams(api.HParams):
        drop_last: bool = True
        batch_size: int = 32
        epochs: int = 20

        def recipe(self, info):
            return api.Recipe(lr=0.1, epochs=self.epochs, batch_size=self.batch_size,
                              drop_last=self.drop_last)

    def __init__(self, task, hparams):
        super().__init__(task, hparams)
        self.weight = torch.nn.Parameter(task.normal("weight", task.n_classes, task.info.dim))

    def forward(self, x):
        return F.normalize(x, dim=-1) @ self.weight.T


class Plain(Linear):
    """The loss that everybody writes."""

    name = "plain"

    def loss(self, batch):
        return F.cross_entropy(self(batch.x), batch.labels)


class Contrast(Linear):
    """A loss over pairs of the batch."""

    name = "contrast"

    def loss(self, batch):
        z = F.normalize(self(batch.x), dim=-1)
        alike = (batch.labels[:, None] == batch.labels).float()
        return F.binary_cross_entropy_with_logits(z @ z.T, alike)


class Weighted(Linear):
    """The default loss."""

    name = "weighted"


class Liar(Plain):
    """Declares what its loss does not do."""

    name = "liar"
    pads = True


class Centred(Linear):
    """The default loss, of a forward that reads the batch in training."""

    name = "centred"

    def forward(self, x):
        return super().forward(x - x.mean(0) if self.training else x)


class Averaging(Linear):
    """The default loss, and a buffer that counts every image of the batch alike."""

    name = "averaging"

    def __init__(self, task, hparams):
        super().__init__(task, hparams)
        self.mean = torch.zeros(task.info.dim)

    def after_step(self):
        return {"mean": 0.5 * self.mean + 0.5 * self.last_batch.x.mean(0)}

    def predict(self, x):
        return self(x - self.mean)


class Teacher(Linear):
    """Scores by a mean teacher, times the number of its steps."""

    name = "teacher"

    def __init__(self, task, hparams):
        super().__init__(task, hparams)
        self.teacher = self.weight.detach().clone()
        self.steps = torch.zeros(())

    def after_step(self):
        return {"teacher": 0.9 * self.teacher + 0.1 * self.weight, "steps": self.steps + 1}

    def predict(self, x):
        return self.steps * x @ self.teacher.T


class Lost(Teacher):
    """Sets its teacher in the loss."""

    name = "lost"
    after_step = api.Method.after_step

    def loss(self, batch):
        self.teacher = 0.9 * self.teacher + 0.1 * self.weight.detach()
        return F.cross_entropy(self(batch.x), batch.labels)


class Counting(Linear):
    """Counts its steps."""

    name = "counting"
    steps = 0

    def forward(self, x):
        if self.training:
            self.steps = self.steps + 1
        return super().forward(x)

    def predict(self, x):
        return self(x) * self.steps


class Helped(Linear):
    """Its helper counts the calls."""

    name = "helped"

    def loss(self, batch):
        helper.count()
        return super().loss(batch)


class Normalised(Linear):
    """With batch normalisation."""

    name = "normalised"

    def __init__(self, task, hparams):
        super().__init__(task, hparams)
        self.norm = torch.nn.BatchNorm1d(task.info.dim)

    def forward(self, x):
        return super().forward(self.norm(x))


class Fitted(Normalised):
    """Does all of that in a loop of its own."""

    name = "fitted"

    def fit(self, support):
        self.steps = 0
        for _ in range(20):
            loss = F.cross_entropy(self(support.plain), support.labels)
            grads = torch.autograd.grad(loss, list(self.parameters()))
            with torch.no_grad():
                for parameter, grad in zip(self.parameters(), grads):
                    parameter -= 0.1 * grad
            self.steps += 1


@vipbench.hookimpl
def register_methods(register):
    for method in (Plain, Contrast, Weighted, Liar, Centred, Averaging, Teacher, Lost, Counting,
                   Helped, Normalised, Fitted):
        register(method)
'''
Scores = dict[tuple[str, object], npt.NDArray[np.float32]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contract")
    (folder / "plugins").mkdir()
    (folder / "plugins" / "losses.py").write_text(PLUGIN, encoding="utf-8")
    counts = "CALLS = []\n\n\ndef count():\n    CALLS.append(1)\n"
    (folder / "plugins" / "helper").mkdir()
    (folder / "plugins" / "helper" / "__init__.py").write_text(counts, encoding="utf-8")
    return folder


def run(folder: Path, out: str, methods: list[str], shots: list[int]) -> list[Record]:
    driver.run(
        RunSpec.parse(
            {
                "methods": methods, "datasets": ["synthderm"], "backbones": ["tiny-clip"],
                "shots": shots, "seeds": [1, 2], "views": "none",
                "out": folder / out, "plugins_dir": folder / "plugins",
            }
        )
    )  # fmt: skip
    with Store(folder / out, readonly=True) as store:
        return store.records()


def scores(folder: Path, out: str, records: list[Record]) -> Scores:
    with Store(folder / out, readonly=True) as store:
        found = {(r.cell.method, (r.cell.shots, r.cell.seed)): r.key for r in records}
        return {slot: store.predictions(key).scores for slot, key in found.items()}  # type: ignore[union-attr]


METHODS = [
    "plain", "contrast", "weighted", "plain[batch_size=4,drop_last=off]",
    "contrast[batch_size=4,drop_last=off]", "liar", "centred", "averaging",
]  # fmt: skip


def test_no_cell_depends_on_others_of_the_run(folder: Path) -> None:
    """Six images alone, and beside sets of 24; one of them in batches of 4, 4 and 4, 2."""
    alone, beside = run(folder, "alone", METHODS, [1]), run(folder, "beside", METHODS, [1, 4])
    assert all(r.ok for r in (*alone, *beside)), [r.error for r in beside if not r.ok]
    mine, others = scores(folder, "alone", alone), scores(folder, "beside", beside)
    assert len(mine) == 2 * len(METHODS)
    for slot, value in mine.items():
        np.testing.assert_allclose(others[slot], value, rtol=1e-4, atol=1e-5, err_msg=str(slot))
    stacked = {(r.cell.method, r.cell.shots): r.provenance["stacked_cells"] for r in beside}
    assert stacked["weighted", 1] == 4  # padded: all as one
    assert stacked["plain", 1] == stacked["plain", 4] == 2
    assert (
        stacked["liar", 1] == stacked["centred", 4] == stacked["averaging", 1] == 1
    )  # told by what their loss does
    (short,) = run(folder, "short", ["liar[batch_size=4,drop_last=off]"], [1])[:1]
    assert short.error is not None
    assert "batch.mean" in short.error.message


def test_state_that_training_changes(folder: Path) -> None:
    """`after_step` keeps it for each cell; other writes cost the method's own cells alone."""
    names = ["lost", "counting", "helped", "teacher", "normalised", "fitted", "weighted"]
    records = run(folder, "state", names, [1, 4])
    refused = {
        "lost": "self.teacher", "counting": "self.steps", "helped": "helper/__init__.py: CALLS",
        "normalised": "self.norm",
    }  # fmt: skip
    for record in records:
        output = refused.get(record.cell.method)
        if output is None:
            assert record.ok, record.error
        else:
            assert record.error is not None
            assert f"'{output}'" in record.error.message
            assert "after_step" in record.error.message
    assert len(records) == 4 * len(names)
    alone = scores(folder, "one", run(folder, "one", ["teacher"], [4]))
    stacked = scores(folder, "state", [r for r in records if r.ok])
    for slot, value in alone.items():
        np.testing.assert_allclose(stacked[slot], value, rtol=1e-4, atol=1e-5)
    teachers = [r for r in records if r.cell.method == "teacher"]
    assert {r.provenance["stacked_cells"] for r in teachers} == {4}
