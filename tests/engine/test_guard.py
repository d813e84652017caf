"""What a plugin writes into what it shares with others is noticed, or reaches nobody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.backbones.clips import random_backbone
from vipbench.engine.guard import FrozenTexts, Guard, SpoiltError
from vipbench.engine.workers import session as worker
from vipbench.engine.workers.messages import Done, Event
from vipbench.runspec.run import RunSpec

PLUGIN = '''
"""Class means; each method changes something on the way."""
from dataclasses import dataclass

import torch
import vipbench
from vipbench import api


class Means(api.Method):
    kind = "TF"
    needs = frozenset({"text"})
    out = torch.zeros(300, 6)

    def prepare(self, support):
        self.misdeed()
        rows = [support.plain[support.labels == c].mean(0) for c in range(support.n_classes)]
        self.means = torch.stack(rows)

    def misdeed(self):
        pass

    def weights(self):
        return [w for w in self.task.backbone._model.parameters() if w.dim() == 2 and len(w) > 8]

    def forward(self, x):
        return x @ self.means.T


class Good(Means):
    name = "good"


class PermutesInPlace(Means):
    name = "permutes-in-place"
    def misdeed(self):
        with torch.no_grad():
            for weight in self.weights():
                weight.copy_(weight.roll(1, 0))


class PermutesData(Means):
    name = "permutes-data"
    def misdeed(self):
        for weight in self.weights():
            weight.data.copy_(weight.data.roll(1, 0))


class SetsData(Means):
    name = "sets-data"
    def misdeed(self):
        for weight in self.weights():
            weight.data = weight.data.roll(1, 0)


class Replaces(Means):
    name = "replaces"
    def misdeed(self):
        for module in self.task.backbone._model.modules():
            for key, weight in list(module._parameters.items()):
                if weight is not None and weight.dim() == 2:
                    module._parameters[key] = torch.nn.Parameter(weight.roll(1, 0), False)


class PermutesTexts(Means):
    name = "permutes-texts"
    def misdeed(self):
        features = self.task.text_features(self.task.class_texts()).numpy()
        features[:] = features[[-1, *range(len(features) - 1)]]


class Late(Means):
    """Trained on views; reads evaluation views once the tower is changed."""

    name = "late"

    @dataclass(frozen=True)
    class HParams(api.HParams):
        def recipe(self, info):
            return api.Recipe(lr=0.1, epochs=1)

    def __init__(self, task, hparams):
        super().__init__(task, hparams)
        self.weight = torch.nn.Parameter(task.normal("weight", task.n_classes, task.info.dim))

    def misdeed(self):
        for weight in self.weights():
            weight.data.copy_(weight.data.roll(1, 0))

    def forward(self, x):
        return x @ self.weight.T


class ChangesTest(Means):
    name = "changes-test"
    def predict(self, x):
        scores = super().predict(x)
        x.numpy()[:] = x.numpy()[::-1].copy()
        return scores


class KeepsOut(Means):
    name = "keeps-out"
    def predict(self, x):
        self.__class__.out[: len(x)] = super().predict(x)
        return self.__class__.out[: len(x)]


@vipbench.hookimpl
def register_methods(register):
    for method in (Good, PermutesInPlace, PermutesData, SetsData, Replaces, PermutesTexts,
                   ChangesTest, KeepsOut, Late):
        register(method)
'''


def run(plugins: Path, method: str, views: str | int = "none") -> list[Done]:
    """The events of two cells of one method that run one after the other."""
    events: list[Event] = []
    session = worker.Session(events.append)
    settings: dict[str, Any] = {
        "methods": [method], "datasets": ["synthderm"], "backbones": ["tiny-clip"],
        "shots": [1], "seeds": [1, 2], "views": views, "device": "cpu",
        "plugins_dir": str(plugins),
    }  # fmt: skip
    session.plan(RunSpec.parse(settings))
    session.run(list(session.cells))
    return [event for event in events if isinstance(event, Done)]


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIPBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "deeds.py").write_text(PLUGIN)
    return tmp_path / "plugins"


@pytest.mark.parametrize(
    ("method", "what"),
    [
        ("permutes-in-place", "weights"),
        ("permutes-data", "weights"),
        ("sets-data", "weights"),
        ("replaces", "weights"),
        ("permutes-texts", "texts"),
    ],
)
def test_what_only_changes_the_order_is_noticed(plugins: Path, method: str, what: str) -> None:
    for event in run(plugins, method):
        message = event.record.error.message
        assert what in message
        assert f"method '{method}'" in message
        assert "deeds.py" in message


def test_what_a_changed_tower_encodes_enters_no_cache(plugins: Path) -> None:
    assert all(event.record.error is not None for event in run(plugins, "late", views=1))
    marks = [json.loads(mark.read_text()) for mark in plugins.parent.rglob("shelf.json")]
    kept = {(mark["split"], str(mark["view"])) for mark in marks if "split" in mark}
    assert ("test", "evaluation") in kept
    assert ("train", "evaluation") not in kept


@pytest.mark.parametrize("method", ["changes-test", "keeps-out"])
def test_a_cell_scores_the_same_in_company(plugins: Path, method: str) -> None:
    good, found = (
        [(e.record.error, e.predictions.scores.tobytes()) for e in run(plugins, name)]
        for name in ("good", method)
    )
    assert found == good
    assert good[0] != good[1]


def test_versions_are_enough_for_what_is_written_in_place() -> None:
    tower = random_backbone()
    guard = Guard(tower, FrozenTexts())
    guard.arm()
    guard.look()
    guard.check()
    weight = next(tower._model.parameters())
    with torch.no_grad():
        weight.copy_(weight.clone())
    with pytest.raises(SpoiltError, match="weights"):
        guard.look("the method")
