"""What is encoded is what was hashed: images and cache blocks that change while a run uses them."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vipbench.api import DataError, ImageError, Split
from vipbench.datasets.npz import NpzDataset
from vipbench.engine.features.cache import Shelf
from vipbench.engine.planning.pixels import examine
from vipbench.images import ImageChangedError
from vipbench.results import Store

# A backbone that stands for another program: with the first batch it puts other files in place.
PLUGIN = """
import os
import shutil
import sys
from pathlib import Path

import vipbench

sys.path.insert(0, str(Path(__file__).parent))
from thumbnail import Thumbnail


class Meddler(Thumbnail):
    def __init__(self, argument):
        super().__init__(argument)
        self.name = "meddler"

    def encode_image(self, pixels, tap=None):
        new, old = Path(os.environ["NEW"]), Path(os.environ["OLD"])
        if new.exists():
            shutil.copy2(new, old)
            new.unlink()
        return super().encode_image(pixels, tap)


@vipbench.hookimpl
def register_backbones(register):
    register("meddler", Meddler)
"""


def write_images(folder: Path, seed: int, per_class: int = 70) -> None:
    for split, count in (("train", 4), ("val", 1), ("test", per_class)):
        for label, level in (("dark", 40), ("bright", 200)):
            at = folder / split / label
            at.mkdir(parents=True)
            for i in range(count):
                noise = np.random.default_rng([seed, i, level, count]).integers(-30, 30, (8, 8, 3))
                Image.fromarray((noise + level).astype(np.uint8)).save(at / f"{i}.png")


def test_an_image_that_changes_during_a_run(cli, repo, tmp_path):
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    shutil.copy(repo / "plugins/thumbnail.py", plugins)
    (plugins / "meddler.py").write_text(PLUGIN)
    for seed, name in enumerate(("one", "two")):
        write_images(tmp_path / name, seed)
    changed = tmp_path / "one/test/dark/69.png"
    whole = changed.read_bytes()
    new = tmp_path / "new.png"
    # Same size and time, as `cp -p` of another image can have them: the bytes alone tell.
    Image.fromarray(np.full((8, 8, 3), 255, np.uint8)).save(new)
    new.write_bytes(new.read_bytes().ljust(len(whole), b"\0"))
    args = [
        "run", "--backbones", "meddler", "--methods", "ncm", "--shots", "2", "--seeds", "1",
        "--views", "none", "--validation", "none", "--datasets",
        f"folder:{tmp_path / 'one'},folder:{tmp_path / 'two'}", "--plugins-dir", plugins,
        "--out", tmp_path / "R",
    ]  # fmt: skip
    env = {"NEW": str(new), "OLD": str(changed), "VIPBENCH_CACHE": str(tmp_path / "cache")}
    done = cli(*args, env=env)
    assert done.returncode == 1, done.stdout + done.stderr
    with Store(tmp_path / "R", readonly=True) as store:
        records = [store.record(key) for key in store.status()]
    failed = {r.cell.dataset: r.error for r in records if r and r.cell.method == "ncm"}
    assert failed["two"] is None
    assert "test/dark/69.png" in str(failed["one"])
    assert hashlib.sha256(whole).hexdigest()[:12] in str(failed["one"])
    # Put back, it gives what it always would have given: nothing of it was kept.
    changed.write_bytes(whole)
    again = cli(*args, env=env)
    assert again.returncode == 0, again.stdout + again.stderr
    fresh = cli(*args[:-1], tmp_path / "F", env={**env, "VIPBENCH_CACHE": str(tmp_path / "other")})
    assert fresh.returncode == 0
    tables = [(tmp_path / out / "results.csv").read_text() for out in ("R", "F")]
    lines = [[line.split(",")[:12] for line in table.splitlines()] for table in tables]
    assert lines[0] == lines[1]


def test_decoders_and_splits_open_nothing_but_what_was_planned(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4), "red").save(path)
    array = np.zeros((4, 4), np.uint8)
    kept = Image.new("RGB", (4, 4), "blue")
    split = Split([path, array, kept], np.zeros(3, np.int64), ("a", "b", "c"))
    planned = examine({"train": split}, None)[0]["train"]
    assert planned.digests == split.digests
    for i in range(3):
        planned.open(i)
    Image.new("RGB", (4, 4), "lime").save(path)
    array[0, 0] = 1
    kept.putpixel((0, 0), (1, 2, 3))
    for i, name in enumerate("abc"):
        with pytest.raises(ImageChangedError, match=f"'{name}'.*changed"):
            planned.open(i)


@pytest.mark.parametrize("how", ["cut", "rewritten", "replaced"])
def test_a_file_of_arrays_that_changes_during_a_run(tmp_path, how):
    path = tmp_path / "toy.npz"
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 256, (40, 64, 64), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(40) % 2
    np.savez(path, **arrays)
    path.with_suffix(".yaml").write_text("class_names: [a, b]\n")
    splits, _ = examine(NpzDataset(str(path)).load(None), None)
    test = splits["test"]
    if how == "replaced":
        np.savez(tmp_path / "new.npz", **{k: v[::-1] for k, v in arrays.items()})
        (tmp_path / "new.npz").replace(path)
        assert np.array_equal(np.asarray(test.open(39))[..., 0], arrays["test_images"][39])
        return
    if how == "cut":
        with path.open("r+b") as file:
            file.truncate(200_000)
    else:
        np.savez(path, **{k: v[::-1] for k, v in arrays.items()})
    with pytest.raises(ImageError, match=r"toy\.npz.*(changed|truncated)"):
        test.open(39)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("how", ["rewritten", "replaced"])
def test_a_file_of_arrays_that_changes_while_it_is_planned(tmp_path, save, how):
    """Labels of one file and images of another make no dataset, also of the same size and time."""
    path, other = tmp_path / "toy.npz", tmp_path / "other.npz"
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.zeros((4, 8, 8), np.uint8)
        arrays[f"{split}_labels"] = np.arange(4) % 2
    save(path, **arrays)
    save(other, **{k: 1 - v % 2 for k, v in arrays.items()})
    path.with_suffix(".yaml").write_text("class_names: [a, b]\n")
    splits = NpzDataset(str(path)).load(None)
    old = path.stat()
    if how == "replaced":
        other.replace(path)
    else:
        path.write_bytes(other.read_bytes().ljust(old.st_size, b"\0"))
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    with pytest.raises(DataError, match=r"toy\.npz' changed.*array '"):
        examine(splits, None)


def test_a_cache_block_that_changes_while_it_is_open(tmp_path):
    items = [(i, 0) for i in range(2000)]
    features = torch.randn(2000, 64)
    Shelf(tmp_path, {}).put(items, features)
    [block] = tmp_path.glob("*.safetensors")
    for change in (lambda data: data[: len(data) // 2], lambda data: data[:-64] + bytes(64)):
        whole = block.read_bytes()
        shelf = Shelf(tmp_path, {})
        assert torch.equal(shelf.get(items[:1])[0, 0], features[0])
        with block.open("r+b") as file:  # in place, as a copy over it or a bad disk does
            file.write(change(whole))
            file.truncate(len(change(whole)))
        assert shelf.get(items) == {}
        assert any("damaged" in problem for problem in shelf.problems)
        assert not block.exists()
        block.write_bytes(whole)
