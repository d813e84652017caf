"""What was wrong does not stay. A results folder and a feature cache that were filled while a part
of the program computed something else, under a lower revision, give the right scores on the next
run, and the plan says which revision changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tests.backbones import hub_models
from vipbench.api import Split
from vipbench.backbones.loading import tokenizers
from vipbench.datasets.npz import NpzDataset
from vipbench.engine.evaluation import runner
from vipbench.engine.features import decode_process, features
from vipbench.engine.planning import cells, sampling
from vipbench.engine.workers import driver
from vipbench.engine.workers.messages import Done, Event
from vipbench.engine.workers.session import Session
from vipbench.methods.linear_probe import LinearProbe
from vipbench.results import Store
from vipbench.runspec.run import RunSpec

Patch = pytest.MonkeyPatch
Scores = dict[str, npt.NDArray[np.float32]]


def reader(patch: Patch) -> None:
    right = Split.open_given
    patch.setattr(
        Split, "open_given", lambda *given: Image.fromarray(255 - np.asarray(right(*given)))
    )
    for module in (cells, features):
        patch.setattr(module, "READER_REVISION", cells.READER_REVISION - 1)


def image_pass(patch: Patch) -> None:
    right = features.Features._encode
    patch.setattr(features.Features, "_encode", lambda self, x: right(self, x).roll(1, -1) ** 3)
    for module in (cells, features):
        patch.setattr(module, "FEATURE_REVISION", cells.FEATURE_REVISION - 1)


def text_pass(patch: Patch) -> None:
    from vipbench.backbones.towers.clip import ClipBackbone

    right = ClipBackbone.encode_text
    patch.setattr(ClipBackbone, "encode_text", lambda *a, **k: right(*a, **k).roll(1, -1))
    for module in (cells, features):
        patch.setattr(module, "TEXT_REVISION", cells.TEXT_REVISION - 1)


def views(patch: Patch) -> None:
    right = decode_process.training_view
    patch.setattr(
        decode_process,
        "training_view",
        lambda image, *rest: right(image, *rest).transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    )
    for module in (cells, features):
        patch.setattr(module, "VIEW_REVISION", cells.VIEW_REVISION - 1)


def sampler(patch: Patch) -> None:
    sampling._ranking.cache_clear()
    patch.setattr(sampling, "_rank", lambda seed, purpose, digest: digest)
    patch.setattr(sampling, "REVISION", sampling.REVISION - 1)


def engine(patch: Patch) -> None:
    right = runner.cell_generator
    patch.setattr(runner, "cell_generator", lambda *key: right("other", *key))
    patch.setattr(cells, "ENGINE_REVISION", cells.ENGINE_REVISION - 1)


def method(patch: Patch) -> None:
    right = LinearProbe.forward
    patch.setattr(LinearProbe, "forward", lambda self, x: -right(self, x))
    patch.setattr(LinearProbe, "revision", LinearProbe.revision - 1)


def loader(patch: Patch) -> None:
    right = NpzDataset.load

    def load(self: NpzDataset, root: Path | None) -> Any:
        splits = right(self, root)
        return {n: Split(s.images, 1 - s.labels, s.ids, s.groups) for n, s in splits.items()}

    patch.setattr(NpzDataset, "load", load)
    patch.setattr(NpzDataset, "revision", NpzDataset.revision - 1)


def tokenizer(patch: Patch) -> None:
    right = tokenizers.framed_wordpieces

    def framed(*args: Any, **more: Any) -> Any:
        pieces = right(*args, **more)
        encode = pieces.encode
        object.__setattr__(pieces, "encode", lambda text: encode(text)[::-1])
        return pieces

    from vipbench.backbones.loading import transformers

    patch.setattr(transformers, "framed_wordpieces", framed)
    patch.setattr(tokenizers, "TOKENIZER_REVISION", tokenizers.TOKENIZER_REVISION - 1)


@dataclass
class Folder:
    """One results folder and one feature cache. run: plans and runs, tells scores and reasons."""

    root: Path
    backbone: str
    scores: Scores = field(default_factory=dict)
    reasons: set[str | None] = field(default_factory=set)

    def run(self, row: str) -> None:
        spec = RunSpec.parse(
            {
                "methods": [row], "datasets": [f"npz:{self.root / 'toy.npz'}"],
                "backbones": [self.backbone], "shots": [2], "seeds": [1], "views": 2,
                "device": "cpu", "out": str(self.root / "out"),
            }
        )  # fmt: skip
        events: list[Event] = []
        session = Session(events.append)
        session.plan(spec)
        plan = driver._judged(events[-1], spec, retry=True, imported=False)
        self.reasons = {cell.reason for cell in plan.of("todo")}
        for keys in plan.groups():
            session.run(keys)
        (cell,) = plan.cells
        with Store(spec.out) as store:
            for event in events:
                if isinstance(event, Done):
                    record = event.record
                    assert record.ok, record.error
                    store.add(record, event.predictions)
            stored = store.predictions(cell.key)
        assert stored is not None
        self.scores = dict(zip(stored.ids, stored.scores, strict=True))


def write_data(folder: Path) -> None:
    """Two classes of noise, a little apart."""
    folder.mkdir()
    rng, arrays = np.random.default_rng(0), {}
    for split, count in (("train", 12), ("val", 8), ("test", 10)):
        labels = np.arange(count) % 2
        noise = rng.integers(0, 200, (count, 28, 28)) + 20 * labels[:, None, None]
        arrays |= {f"{split}_images": noise.astype(np.uint8), f"{split}_labels": labels[:, None]}
    np.savez(folder / "toy.npz", **arrays)
    (folder / "toy.yaml").write_text("class_names: [nevus, melanoma]\n")


def same(one: Scores, two: Scores) -> bool:
    return all(np.array_equal(one[image], two[image]) for image in one)


@pytest.mark.parametrize(
    ("lower", "row", "named"),
    [
        (reader, "ncm", "image reader"),
        (image_pass, "ncm", "image pass"),
        (text_pass, "zero-shot", "text pass"),
        (views, "taskres[epochs=2]", "views"),
        (sampler, "ncm", "sampler"),
        (engine, "coop[epochs=2]", "engine"),
        (method, "linear-probe", "method"),
        (loader, "ncm", "loader"),
        (tokenizer, "zero-shot", "tokenizer"),
    ],
)
def test_a_raised_revision_replaces_what_was_wrong(
    lower: Callable[[Patch], None], row: str, named: str, tmp_path: Path
) -> None:
    source = "tiny-clip"
    if lower is tokenizer:
        hub_models.save_clip(tmp_path / "model")
        source = f"transformers:{tmp_path / 'model'}"
    for name in ("old", "fresh"):
        write_data(tmp_path / name)
    old, fresh = Folder(tmp_path / "old", source), Folder(tmp_path / "fresh", source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIPBENCH_CACHE", str(fresh.root / "cache"))
        fresh.run(row)
        patch.setenv("VIPBENCH_CACHE", str(old.root / "cache"))
        with pytest.MonkeyPatch.context() as lowered:
            lower(lowered)
            old.run(row)
        sampling._ranking.cache_clear()
        assert not same(old.scores, fresh.scores)
        old.run(row)
        (reason,) = old.reasons
        assert reason is not None
        assert reason.startswith("changed")
        assert named in reason
        assert same(old.scores, fresh.scores)
        old.run(row)
        assert not old.reasons
