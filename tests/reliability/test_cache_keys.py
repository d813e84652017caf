"""Foreign features are never used: each part of the cache's key changed in turn misses every time,
and with none changed everything is there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.backbones.clips import random_backbone
from tests.reliability import grid
from vipbench.api import ImageBackbone, Views
from vipbench.datasets.npz import NpzDataset
from vipbench.engine.features import features as module
from vipbench.engine.features.features import Features
from vipbench.engine.kept import CACHE_VARIABLE

ITEMS = list(range(8))
SHIFTED = Views(scale=(0.5, 1.0))


@dataclasses.dataclass
class Given:
    """What features are made of."""

    data: Path
    backbone: ImageBackbone
    split: str = "train"
    views: Views | None = SHIFTED
    seed: int = 1

    def encoded(self) -> int:
        """How many images a run without anything in memory has to encode."""
        dataset = NpzDataset(str(self.data / "toy.npz"))
        splits = dict(dataset.load(None))
        made = Features(self.backbone, splits, dataset.fingerprint(splits))
        if self.views is None:
            made.plain(self.split, ITEMS)
        else:
            made.prepare_views(self.split, ITEMS, self.views, self.seed, 1)
        return made.encoded_images


def other_pixel(given: Given) -> None:
    with np.load(given.data / "toy.npz") as arrays:
        changed = {name: arrays[name].copy() for name in arrays}
    changed["train_images"][3, 5, 5] ^= 1
    np.savez(given.data / "toy.npz", **changed)


def other_weight(given: Given) -> None:
    given.backbone = random_backbone(seed=1)


def preprocessed_otherwise(given: Given) -> None:
    given.backbone = random_backbone(vision_cfg={"image_size": 24})


def on_another_device(given: Given) -> None:
    there = given.backbone
    device = SimpleNamespace(type="cuda")

    class Elsewhere:
        def __getattr__(self, name: str) -> Any:
            return device if name == "device" and asked() else getattr(there, name)

    def asked() -> bool:
        # Only the key is told: the arithmetic stays where it is.
        import sys

        return sys._getframe(2).f_code.co_name == "_parts"

    given.backbone = Elsewhere()  # type: ignore[assignment]


CHANGES: dict[str, Callable[[Given], None]] = {
    "a pixel": other_pixel,
    "weights": other_weight,
    "preprocessing": preprocessed_otherwise,
    "device": on_another_device,
    "split": lambda given: setattr(given, "split", "test"),
    "no view": lambda given: setattr(given, "views", None),
    "scale": lambda given: setattr(given, "views", Views(scale=(0.6, 1.0))),
    "flip": lambda given: setattr(given, "views", dataclasses.replace(SHIFTED, flip=False)),
    "seed": lambda given: setattr(given, "seed", 2),
}
LIBRARIES = ("torch", "torchvision", "open_clip_torch", "transformers", "timm", "pillow")


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Given:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "features"))
    found = Given(grid.write_data(tmp_path), random_backbone(seed=0))
    assert found.encoded() == len(ITEMS)
    assert found.encoded() == 0
    return found


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_part_misses(given: Given, change: str) -> None:
    CHANGES[change](given)
    assert given.encoded() == len(ITEMS)
    assert given.encoded() == 0


@pytest.mark.parametrize("library", LIBRARIES)
def test_another_version_of_a_library_misses(
    given: Given, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = module.library_versions()
    assert set(versions) == set(LIBRARIES)
    monkeypatch.setattr(module, "library_versions", lambda: versions | {library: "0"})
    assert given.encoded() == len(ITEMS)


@pytest.mark.parametrize("revision", ["FEATURE_REVISION", "READER_REVISION"])
def test_another_revision_misses(
    given: Given, revision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, revision, getattr(module, revision) + 1)
    assert given.encoded() == len(ITEMS)


def test_changed_back_hits(given: Given) -> None:
    before = given.backbone
    other_weight(given)
    given.encoded()
    given.backbone = before
    assert given.encoded() == 0


def test_what_is_read_is_what_was_encoded(given: Given) -> None:
    dataset = NpzDataset(str(given.data / "toy.npz"))
    splits = dict(dataset.load(None))
    key = dataset.fingerprint(splits)
    first, second = (Features(given.backbone, splits, key) for _ in range(2))
    assert torch.equal(first.plain("test", ITEMS), second.plain("test", ITEMS))
    assert (first.encoded_images, second.encoded_images) == (len(ITEMS), 0)
