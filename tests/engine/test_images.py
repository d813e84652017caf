"""Methods on images: made when they are needed, a part at a time, the same whoever makes them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vipbench import api
from vipbench.engine.evaluation.runner import GroupRunner
from vipbench.engine.evaluation.support import image_batches, make_support
from vipbench.engine.evaluation.support import test_inputs as inputs_of_test
from vipbench.engine.features import images as pictures
from vipbench.engine.features.features import Features
from vipbench.engine.features.views import draw_view
from vipbench.engine.planning.cells import LoadedCell, Row, plan_cells
from vipbench.engine.planning.loading import load_backbone, load_dataset
from vipbench.engine.planning.protocols import Scene
from vipbench.engine.planning.protocols import test_rows as rows_of_test
from vipbench.plugins.registry import load_registry
from vipbench.runspec.run import RunSpec


class Calls:
    """Takes down calls. Callable: the data of a class must not change in a training step."""

    def __init__(self) -> None:
        self.found: list[tuple[str, int]] = []

    def __call__(self, what: str, n: int) -> None:
        self.found.append((what, n))


class Peek(api.Method):
    """A linear layer on small pixels, which notes how many images it is given at once."""

    name = "peek"
    kind = "FT"
    inputs = "images"
    needs = frozenset()
    pads = True
    seen = Calls()

    @dataclasses.dataclass(frozen=True)
    class HParams(api.HParams):
        epochs: int = 3

        def recipe(self, info: api.CellInfo) -> api.Recipe:
            return api.Recipe(lr=0.1, epochs=self.epochs, batch_size=5, drop_last=False)

    def __init__(self, task: api.Task, hparams: HParams) -> None:
        super().__init__(task, hparams)
        self.layer = task.linear("layer", 3 * 4 * 4, task.n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))

    def loss(self, batch: api.Batch) -> Any:
        self.seen("loss", len(batch.x))
        return super().loss(batch)

    def predict(self, x: Tensor) -> Tensor:
        self.seen("predict", len(x))
        return self(x)


def plan(tmp_path: Path, **values: Any) -> tuple[list[LoadedCell], Features]:
    registry = load_registry()
    spec = RunSpec.parse({"methods": "zero-shot", "shots": "2", "seeds": "1,2", **values})
    data = load_dataset(registry, spec, "synthderm")
    backbone = load_backbone(registry, "tiny-clip")
    plugin = registry.methods["zero-shot"].plugin
    cells = plan_cells(spec, Row("peek", Peek, plugin, Peek.HParams()), Scene(data), backbone)
    return cells, Features(backbone.backbone, data.splits, data.fingerprint)


@pytest.fixture
def planned(tmp_path: Path) -> tuple[list[LoadedCell], Features]:
    return plan(tmp_path)


def test_a_run_holds_a_batch_of_support_images_and_a_part_of_the_test_images(
    planned: tuple[list[LoadedCell], Features], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells, features = planned
    Peek.seen.found.clear()
    asked: list[tuple[str, int]] = []
    whole = Features.images

    def counted(self: Features, split: str, items: Any, views: Any) -> Tensor:
        asked.append((split, len(items)))
        return whole(self, split, items, views)

    monkeypatch.setattr(Features, "images", counted)
    (done,) = GroupRunner(features, print).run(cells)
    assert [d.record.status for d in done] == ["ok", "ok"]
    test = len(features.splits["test"])
    assert test == 300
    # Twelve images in batches of five, three epochs, two seeds; before each training one look at
    # what a step writes, and one without and one with images of weight 0.
    looks = (5, 5, 10)
    assert [n for what, n in Peek.seen.found if what == "loss"] == [*looks, *[5] * 9] * 2
    # Both cells score a part before the next part is made.
    assert [n for what, n in Peek.seen.found if what == "predict"] == [256, 256, 44, 44]
    assert max(n for split, n in asked if split == "train" and n != 12) == 5
    assert [n for split, n in asked if split == "test"] == [256, 44]
    assert done[0].predictions is not None
    assert done[0].predictions.scores.shape == (300, 6)
    assert not np.allclose(done[0].predictions.scores, done[1].predictions.scores)
    (again,) = GroupRunner(features, print).run(cells[:1])
    np.testing.assert_array_equal(again[0].predictions.scores, done[0].predictions.scores)


def test_batches_are_rows_of_the_whole_view(planned: tuple[list[LoadedCell], Features]) -> None:
    cells, features = planned
    cell = cells[0]
    recipe = cell.hparams.recipe(cell.info)
    assert recipe is not None
    support = make_support(features, cell, recipe)
    take = image_batches(features, cell, recipe)
    assert support is not None
    assert take is not None
    assert "plain" not in vars(support)
    assert support.n_views == 3
    assert torch.equal(take([3, 0, 7], 2), support.view(2)[[3, 0, 7]])
    assert torch.equal(take([1], None), support.plain[[1]])
    assert not torch.equal(take([3], 1), take([3], 2))
    other = dataclasses.replace(support, best_val=True)
    assert torch.equal(other.plain, support.plain)
    parts = list(inputs_of_test(features, Peek, rows_of_test(cell.tested), None))
    assert [len(p) for p in parts] == [256, 44]
    assert torch.equal(parts[1][:2], features.images("test", [(256, 0), (257, 0)], None))


@pytest.mark.parametrize(
    ("width", "height", "centre"), [(400, 4, (198, 0, 202, 4)), (5, 402, (0, 198, 5, 203))]
)
def test_an_image_that_no_crop_fits_is_cut_at_its_centre(
    width: int, height: int, centre: tuple[int, ...]
) -> None:
    """As torchvision's RandomResizedCrop does after ten tries; the whole area never fits here."""
    assert {draw_view(width, height, api.Views(scale=(1.0, 1.0)), (n,))[0] for n in range(5)} == {
        centre
    }


class Wards:
    """A sequence that notes in which thread it is asked."""

    def __init__(self, count: int) -> None:
        self.threads: list[str] = []
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        import threading

        self.threads.append(threading.current_thread().name)
        pixels = np.random.default_rng(index).integers(0, 256, (20, 30, 3))
        return Image.fromarray(pixels.astype(np.uint8))


def test_decoded_images_are_kept_up_to_a_limit(
    planned: tuple[list[LoadedCell], Features], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, features = planned
    images = Wards(10)
    labels = np.zeros(10, dtype=np.int64)
    split = api.Split(images, labels, tuple(map(str, range(10))))
    assert len(split.digests) == 10  # read once, when the dataset is loaded
    images.threads.clear()
    monkeypatch.setattr(pictures, "KEEP_BYTES", 4 * 20 * 30 * 3)
    mine = pictures.ImageReader(features.backbone, {"train": split})
    views = (api.Views(), 1)
    wishes = [pictures.Wish("train", views, i, 0) for i in range(10)]
    first = mine.begin(wishes)()
    assert len(images.threads) == 10
    assert set(images.threads) == {"MainThread"}
    assert torch.equal(mine.begin(wishes)(), first)
    assert len(images.threads) == 16
    # The evaluation view, seen once, takes no room.
    fresh = pictures.ImageReader(features.backbone, {"train": split})
    fresh.begin([pictures.Wish("train", None, i, 0) for i in range(10)])()
    assert not fresh._kept
    assert torch.equal(fresh.begin(wishes)(), first)


def test_an_image_that_cannot_be_read_is_named(
    planned: tuple[list[LoadedCell], Features], tmp_path: Path
) -> None:
    _, features = planned
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.new("RGB", (8, 8)).save(good)
    bad.write_bytes(b"no image")
    split = api.Split([good, bad], np.zeros(2, dtype=np.int64), ("good.png", "bad.png"))
    mine = pictures.ImageReader(features.backbone, {"test": split})
    with pytest.raises(api.ImageError, match=r"bad\.png"):
        mine.begin([pictures.Wish("test", None, i, 0) for i in range(2)])()


def test_the_next_batch_is_decoded_while_one_is_encoded(
    planned: tuple[list[LoadedCell], Features], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, features = planned
    images = Wards(70)
    split = api.Split(images, np.zeros(70, dtype=np.int64), tuple(map(str, range(70))))
    asked = []
    encode = features.backbone.encode_image

    def noting(pixels: Tensor) -> Tensor:
        asked.append(len(images.threads))
        return encode(pixels)

    monkeypatch.setattr(features.backbone, "encode_image", noting)
    # Keys of this very test: nothing of them is in any cache.
    mine = Features(features.backbone, {"test": split}, f"seventy in {tmp_path}")
    found = mine.plain("test", range(70))
    # Batches of 32, 32 and 6: each is encoded when the one behind it has been asked for.
    assert asked == [64, 70, 70]
    assert mine.encoded_images == 70
    alone = Features(features.backbone, {"test": split}, f"one in {tmp_path}").plain("test", [33])
    assert torch.equal(found[33], alone[0])


def test_threads_that_decode_start_no_teams_of_their_own(
    planned: tuple[list[LoadedCell], Features],
) -> None:
    _, features = planned
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # what a new thread would take, too
    try:
        mine = pictures.ImageReader(features.backbone, features.splits)
        mine.begin([pictures.Wish("test", None, i, 0) for i in range(2)])()
        assert mine._threads is not None
        assert mine._threads.submit(torch.get_num_threads).result() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
