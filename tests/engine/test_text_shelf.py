"""Frozen texts are encoded once for all runs, and never wrongly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.backbones.clips import random_backbone
from vipbench import api
from vipbench.engine.features.cache import open_shelf
from vipbench.engine.features.texts import TextShelf
from vipbench.engine.guard import FrozenTexts, Guard
from vipbench.engine.workers import session as worker
from vipbench.engine.workers.messages import Done, Event, GroupDone, Note
from vipbench.plugins.registry import load_registry
from vipbench.runspec.run import RunSpec


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("VIPBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def run(methods: list[Any], plugins: Path | None = None) -> list[Event]:
    """The events of a worker that runs every cell, a row at a time."""
    events: list[Event] = []
    session = worker.Session(events.append)
    settings: dict[str, Any] = {
        "methods": methods, "datasets": ["synthderm"], "backbones": ["tiny-clip"],
        "shots": [1], "seeds": [1], "views": "none", "device": "cpu",
    }  # fmt: skip
    if plugins is not None:
        settings["plugins_dir"] = str(plugins)
    session.plan(RunSpec.parse(settings))
    rows: dict[str, list[str]] = {}
    for key, cell in session.cells.items():
        rows.setdefault(cell.row.label, []).append(key)
    for keys in rows.values():
        session.run(keys)
    return events


def message(events: list[Event], name: str) -> list[int]:
    return [getattr(event, name) for event in events if isinstance(event, GroupDone)]


def scores(events: list[Event]) -> dict[str, Any]:
    done = [event for event in events if isinstance(event, Done)]
    assert all(event.record.error is None for event in done)
    return {event.record.key: event.predictions.scores.tolist() for event in done}


METHODS = ["zero-shot", "symptoms-max", "tip-adapter"]


def test_a_later_run_with_one_more_method_encodes_nothing_again() -> None:
    first = run(METHODS)
    assert message(first, "encoded_texts")[-1] > 0
    assert message(first, "encoded_images")[-1] > 0
    again = run(METHODS)
    assert message(again, "encoded_texts") == message(again, "encoded_images") == [0] * len(METHODS)
    assert scores(again) == scores(first)
    more = run([*METHODS, "clip-adapter"])
    assert message(more, "encoded_images")[-1] == 0
    assert message(more, "encoded_texts")[-1] == 0  # its texts are tip-adapter's


def blocks(cache: Path) -> list[Path]:
    """Of texts."""
    marks = [m for m in cache.glob("*/*/shelf.json") if '"texts"' in m.read_text()]
    return [block for mark in marks for block in mark.parent.glob("*.safetensors")]


@pytest.mark.parametrize("harm", [b"", b"\0" * 40], ids=["cut", "zeros"])
def test_a_damaged_block_is_encoded_again(cache: Path, harm: bytes) -> None:
    first = run(["zero-shot"])
    [block] = blocks(cache)
    content = block.read_bytes()
    block.write_bytes(content[: len(content) // 2] + harm)
    again = run(["zero-shot"])
    assert scores(again) == scores(first)
    assert message(again, "encoded_texts") == message(first, "encoded_texts")
    notes = [e.text for e in again if isinstance(e, Note)]
    assert any("damaged" in note for note in notes)
    assert [b.read_bytes() for b in blocks(cache)] == [content]


SPOILER = '''
"""Changes the tower's weights, then has texts encoded."""
import torch
import vipbench
from vipbench import api


class Spoiler(api.Method):
    name = "spoiler"
    kind = "TF"
    needs = frozenset({"text"})
    uses_support = False

    def __init__(self, task, hparams):
        super().__init__(task, hparams)
        with torch.no_grad():
            for name, weight in task.backbone._model.named_parameters():
                weight.mul_(1.5)
        self.classes = task.class_features()

    def forward(self, x):
        return self.task.cosine_logits(x, self.classes)


@vipbench.hookimpl
def register_methods(register):
    register(Spoiler)
'''


PATCHER = SPOILER.replace(
    "        self.classes = task.class_features()\n",
    """            self.classes = task.class_features()
            for name, weight in task.backbone._model.named_parameters():
                weight.copy_(before[name])
""",
).replace(
    "        with torch.no_grad():\n",
    """        before = {n: w.clone() for n, w in task.backbone._model.named_parameters()}
        with torch.no_grad():
""",
)


@pytest.mark.parametrize("code", [SPOILER, PATCHER], ids=["left changed", "put back"])
def test_texts_of_a_changed_tower_never_enter_the_cache(
    code: str, tmp_path: Path, cache: Path
) -> None:
    expected = scores(run(["zero-shot"]))
    for block in blocks(cache):
        block.unlink()
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "spoiler.py").write_text(code)
    spoilt = run(["spoiler"], plugins)
    [error] = [e.record.error for e in spoilt if isinstance(e, Done)]
    assert "weights" in str(error)
    assert blocks(cache) == []
    assert scores(run(["zero-shot"])) == expected


def test_a_trial_leaves_nothing_that_was_computed_from_changed_weights() -> None:
    # OpenAI's activation: its constants are multiplied into copies of the weights.
    tower, untouched = random_backbone(), random_backbone()
    guard, texts = Guard(tower, FrozenTexts()), ["a rash", "a mole"]
    with guard.restored(), torch.no_grad():
        for weight in tower._model.parameters():
            weight.mul_(1.5)
        tower.encode_text(tower.embed(texts))
    features, expected = (t.encode_text(t.embed(texts)) for t in (tower, untouched))
    assert torch.equal(features, expected)


def shelf(tower: Any, folder: Path) -> TextShelf:
    return TextShelf(tower, [open_shelf({"x": 1}, folder)], pytest.fail)


@pytest.mark.parametrize(
    "texts", ["a rash", ["a rash", "a mole"], [["a", "b c"], ["d", "e"]], [("a ", "mole")]]
)
def test_shapes_and_bits(texts: api.Texts, tmp_path: Path) -> None:
    tower = load_registry().backbone("tiny-clip")[0]
    assert isinstance(tower, api.Backbone)
    prompts = tower.embed(texts)
    first = shelf(tower, tmp_path)
    features = first(prompts)
    before = shelf(tower, tmp_path)
    assert torch.equal(before(prompts), features)
    assert before.encoded_texts == first.encoded_texts > 0  # nothing was kept yet
    first.keep()
    later = shelf(tower, tmp_path)
    assert torch.equal(later(prompts), features)
    assert later.encoded_texts == 0
    assert features.shape == (*prompts.shape, tower.dim)


def test_other_texts_and_shapes_are_other_items(tmp_path: Path) -> None:
    tower = load_registry().backbone("tiny-clip")[0]
    assert isinstance(tower, api.Backbone)
    made = shelf(tower, tmp_path)
    calls: list[Callable[[], Tensor]] = [
        lambda t=t: made(tower.embed(t))  # type: ignore[misc]
        for t in (["a", "b"], ["b", "a"], [["a"], ["b"]], ["a"], "a")
    ]
    for i, call in enumerate(calls):
        before = made.encoded_texts
        call()
        made.keep()
        assert made.encoded_texts > before, i
    total = made.encoded_texts
    for call in calls:
        call()
    assert made.encoded_texts == total
