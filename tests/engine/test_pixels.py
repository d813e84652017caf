"""One rule for the pixels of a dataset: what a run takes for white, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.test_image_modes import png
from vipbench.api.dataset import Split
from vipbench.engine.evaluation.runner import GroupRunner
from vipbench.engine.features.features import Features
from vipbench.engine.planning import remembered
from vipbench.engine.planning.cells import Row, plan_cells
from vipbench.engine.planning.loading import LoadedDataset, load_backbone, load_dataset
from vipbench.engine.planning.pixels import examine
from vipbench.engine.planning.protocols import Scene
from vipbench.engine.workers.kept_plans import Reads
from vipbench.errors import UsageError
from vipbench.images import ImageError, PixelRange, reading
from vipbench.plugins.registry import load_registry
from vipbench.runspec.run import RunSpec

REGISTRY = load_registry(None)
SPLITS = ("train", "val", "test")


def values(most: int, n: int = 0) -> np.ndarray:
    made = np.random.default_rng(n).integers(0, most + 1, (6, 8)).astype(np.uint16)
    made.flat[:2] = 0, most
    return made


def write(folder: Path, most: int | dict[str, int], card: str = "", sbit: int = 0, tag: int = 0):
    """Two images of each class and split, whose largest value is `most`, also of a split."""
    for n, split in enumerate(SPLITS):
        for label in "ab":
            for i in range(2):
                path = folder / split / label / f"{i}.{'tif' if tag else 'png'}"
                path.parent.mkdir(parents=True, exist_ok=True)
                largest = most if isinstance(most, int) else most[split]
                array = values(largest, 10 * n + 2 * i + (label == "a"))
                if tag:
                    tifffile.imwrite(path, array, photometric="minisblack",
                                     extratags=[(281, "H", 1, tag, True)])  # fmt: skip
                else:
                    path.write_bytes(png(array, 16, 0, *([(b"sBIT", bytes([sbit]))] * bool(sbit))))
    if card:
        (folder / "card.yaml").write_text(card)


def load(folder: Path) -> LoadedDataset:
    source = f"folder:{folder}"
    return load_dataset(REGISTRY, RunSpec.parse({"datasets": [source]}), source)


def brightest(data: LoadedDataset, split: str = "test") -> int:
    return max(np.asarray(data.splits[split].open(i)).max() for i in range(4))


@pytest.mark.parametrize(
    ("most", "options", "white"),
    [
        (16383, {"card": "bits: 14"}, 16383),
        (9000, {"card": "bits: 14"}, 16383),
        (9000, {"card": "bits: 16"}, 65535),
        (5000, {"card": "window: [0, 5000]"}, 5000),
        (4095, {"sbit": 12}, 4095),
        (65520, {"sbit": 12}, 65535),
        (9000, {"tag": 16383}, 16383),
        (65535, {}, 65535),
        ({"train": 40_000, "val": 900, "test": 900}, {}, 65535),
    ],
)
def test_one_range_for_all_images(tmp_path, most, options, white):
    write(tmp_path, most, **options)
    data = load(tmp_path)
    for split in SPLITS:
        largest = most if isinstance(most, int) else most[split]
        assert brightest(data, split) == int(largest * 255 / white + 0.5)
    assert load(tmp_path).fingerprint == data.fingerprint
    if "sbit" in options or "tag" in options:
        assert any(re.search(f"{white} .*white.* 12 ", notice) for notice in data.notices)


@pytest.mark.parametrize(
    ("most", "options", "output"),
    [
        (16000, {}, ["12 images", "from 0 to 16000", "`bits: 14`", "`window: [0, 16000]`"]),
        (32767, {}, ["`bits: 15`"]),
        ({"train": 900, "val": 65535, "test": 65535}, {}, ["split 'train'", "`bits: 10`"]),
        (900, {"tag": 800}, ["TIFF's MaxSampleValue", "800", "900"]),
        (900, {"card": "bits: 20"}, ["bits is 20", "9 to 16"]),
        (900, {"card": "window: [5, 5]"}, ["window is [5, 5]", "LOW below HIGH"]),
        (900, {"card": "bits: 12\nwindow: [0, 9]"}, ["bits or window, not both"]),
    ],
)
def test_a_set_that_says_nothing_of_white_is_refused(tmp_path, most, options, output):
    write(tmp_path, most, **options)
    with pytest.raises(UsageError) as error:
        load(tmp_path)
    assert all(part in str(error.value) for part in output), str(error.value)


@pytest.mark.parametrize("card", ["bits: 12", "window: [0, 4095]"])
def test_a_later_image_above_the_range_is_an_error(tmp_path, card):
    write(tmp_path, {"train": 4095, "val": 4095, "test": 9000}, card)
    data = load(tmp_path)
    assert brightest(data, "train") == 255
    with pytest.raises(ImageError, match=r"test/a/0\.png.* 9000.* 4095"):
        data.splits["test"].open(0)
    method, plugin = REGISTRY.method("ncm")
    backbone = load_backbone(REGISTRY, "tiny-clip")
    spec = RunSpec.parse({"methods": "ncm", "shots": "1", "seeds": "1"})
    row = Row("ncm", method, plugin, method.HParams())
    features = Features(backbone.backbone, data.splits, data.fingerprint)
    cells = plan_cells(spec, row, Scene(data), backbone)
    ((done,),) = GroupRunner(features, print).run(cells)
    error = done.record.error
    assert error is not None
    assert f"dataset '{data.dataset.name}'" in error.message
    assert "test/a/0.png" in error.message
    assert "ncm.py" not in error.message
    assert error.file == data.plugin.file.name


def test_a_window_cuts_off_what_training_images_hold_outside_of_it(tmp_path):
    write(tmp_path, {"train": 9000, "val": 900, "test": 20000}, "window: [0, 1000]")
    data = load(tmp_path)
    assert brightest(data) == 255
    assert any("4 of 4 " in notice for notice in data.notices)


def test_what_the_card_says_of_pixels_enters_the_fingerprint(tmp_path):
    write(tmp_path, 1000, "bits: 14")
    one = load(tmp_path).fingerprint
    (tmp_path / "card.yaml").write_text("bits: 12")
    two = load(tmp_path).fingerprint
    (tmp_path / "card.yaml").write_text("window: [0, 4095]")
    assert len({one, two, load(tmp_path).fingerprint}) == 3


def test_files_that_say_different_things(tmp_path):
    write(tmp_path, 1000, tag=4095)
    tag = (281, "H", 1, 16383, True)
    tifffile.imwrite(tmp_path / "test/a/1.tif", values(1000), extratags=[tag])
    with pytest.raises(UsageError, match=r"4095.*'test/a/1\.tif'.*16383"):
        load(tmp_path)


def test_eight_bits_beside_sixteen(tmp_path):
    write(tmp_path, 65535)
    Image.fromarray(values(255).astype(np.uint8)).save(tmp_path / "test/a/0.png")
    data = load(tmp_path)
    assert brightest(data) == 255
    assert any(re.search("1 of 8 .*11 of 16 ", notice) for notice in data.notices)
    for card, why in (("window: [0, 9000]", r"'test/a/0\.png' has 8"), ("bits: 12", None)):
        (tmp_path / "card.yaml").write_text(card)
        if why is None:
            assert load(tmp_path).splits["test"].pixels == PixelRange(0, 4095, "the card's bits")
        else:
            with pytest.raises(UsageError, match=why):
                load(tmp_path)


def test_sixteen_bits_in_the_test_split_alone(tmp_path):
    """Where no training image leaves its range open, the others' values settle it."""
    write(tmp_path, 65535)
    for path in (tmp_path / "train").glob("*/*.png"):
        Image.fromarray(values(255).astype(np.uint8)).save(path)
    data = load(tmp_path)
    assert data.splits["test"].pixels.high == 65535
    assert brightest(data) == 255


def test_a_card_of_bits_for_images_of_eight(tmp_path):
    for split in SPLITS:
        for label in "ab":
            (tmp_path / split / label).mkdir(parents=True)
            image = Image.fromarray(values(255, len(label)).astype(np.uint8))
            image.save(tmp_path / split / label / "0.png")
    (tmp_path / "card.yaml").write_text("bits: 12")
    with pytest.raises(UsageError, match="8 bits"):
        load(tmp_path)


def test_pages_and_empty_alpha_are_noted(tmp_path):
    write(tmp_path, 65535)
    pages = np.stack([values(65535), values(65535, 1)])
    tifffile.imwrite(tmp_path / "test/a/2.tif", pages, photometric="minisblack")
    Image.new("RGBA", (4, 4), (200, 10, 10, 0)).save(tmp_path / "test/b/2.png")
    data = load(tmp_path)
    printed = "\n".join(data.notices)
    assert "('test/a/2.tif')" in printed
    assert re.search("1 of 14 .*alpha", printed)
    assert data.splits["test"].open(5).getpixel((0, 0)) == (200, 10, 10)


def test_files_that_an_earlier_plan_examined_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIPBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "RECENT_NS", -(10**12))
    rng = np.random.default_rng(0)
    paths = []
    for i in range(4):
        deep = rng.integers(0, 3000 + 62000 * (i == 3), (8, 8)).astype(np.uint16)
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(deep).save(paths[-1])
    labels = np.array([0, 1])

    def splits() -> dict[str, Split]:
        halves = {"train": paths[2:], "test": paths[:2]}
        return {
            name: Split(some, labels, tuple(p.name for p in some)) for name, some in halves.items()
        }

    def facts(found: tuple[dict[str, Split], list[str]]) -> list[object]:
        return [*found[1], *((name, s.planned, s.pixels) for name, s in found[0].items())]

    fresh = facts(examine(splits(), None))
    modes = [path.stat().st_mode for path in paths]
    # Any reading of their content would fail; what rests on the plan still names them.
    reader = Reads()
    with reader.watched() as opened:
        monkeypatch.setattr(reading, "_read", None)
        assert facts(examine(splits(), None)) == fresh
    assert {str(path) for path in paths} <= opened
    [file] = (tmp_path / "cache" / "digests").iterdir()
    known = json.loads(file.read_text())
    for path, entry in known["answer"].items():
        known["answer"][path] = [*entry[:3], {"digest": 5, "stored": None}]
    monkeypatch.undo()
    monkeypatch.setenv("VIPBENCH_CACHE", str(tmp_path / "cache"))
    # What was altered is not used.
    file.write_text(json.dumps(known))
    assert facts(examine(splits(), None)) == fresh
    # A file of the same size and time of change counts as changed all the same.
    state, content = paths[0].stat(), bytearray(paths[0].read_bytes())
    content[-20] ^= 1
    paths[0].write_bytes(content)
    os.utime(paths[0], ns=(state.st_atime_ns, state.st_mtime_ns))
    again = examine(splits(), None)[0]["test"].planned
    assert again is not None
    assert again[0] == hashlib.sha256(content).hexdigest()
    assert modes == [path.stat().st_mode for path in paths]


def test_a_link_to_another_file_of_the_same_times_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are unpacked together have the same times, as far as the clock tells."""
    monkeypatch.setenv("VIPBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "RECENT_NS", -(10**12))
    files = [tmp_path / f"{i}.bmp" for i in range(40)]
    for i, file in enumerate(files):
        Image.new("L", (8, 8), i).save(file)
    for file in files:
        os.utime(file, ns=(0, 0))
    times = [(file, file.stat().st_ctime_ns) for file in files]
    pairs = [(one, two) for (one, at), (two, then) in pairwise(times) if at == then]
    if not pairs:
        pytest.skip("the clock of this file system is too fine")
    link, digests = tmp_path / "link.bmp", []
    for target in pairs[0]:
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        split = Split([link], np.array([0]), ("link",))
        digests.append(examine({"train": split}, None)[0]["train"].planned)
    assert digests[0] != digests[1]
