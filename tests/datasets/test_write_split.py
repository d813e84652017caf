from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vipbench.api import DataError
from vipbench.cli.commands.dataset import parse_ratios, write_split
from vipbench.datasets.csv_manifest import CsvDataset
from vipbench.errors import UsageError


@pytest.fixture
def manifest(tmp_path, make_images) -> Path:
    names = [f"{i}.png" for i in range(60)]
    make_images(tmp_path, names)
    rows = [f"{n},{'NV' if i % 3 else 'mel'},p{i // 2}" for i, n in enumerate(names)]
    path = tmp_path / "skin.csv"
    path.write_text("file,label,patient\n" + "\n".join(rows) + "\n")
    (tmp_path / "skin.yaml").write_text("columns: {path: file}\nclass_names: {NV: nevus}\n")
    return path


def test_a_manifest_gets_a_split_that_loads(manifest):
    written = write_split(f"csv:{manifest}", group="patient")
    assert written.path == manifest.with_name("skin-split.csv")
    assert written.groups == 30
    dataset = CsvDataset(str(written.path))
    splits = dataset.load(None)
    assert dataset.class_names == ("nevus", "mel")
    assert dataset.caption == ""
    assert {k: len(v) for k, v in splits.items()} == {"train": 36, "val": 6, "test": 18}
    held = [set(splits[s].groups) for s in ("train", "val", "test")]
    assert not held[0] & held[1] | held[0] & held[2] | held[1] & held[2]
    assert written.counts["mel"] == [s.counts(2)[1] for s in splits.values()]
    again = manifest.with_name("again.csv")
    write_split(f"csv:{manifest}", group="patient", out=again)
    assert again.read_bytes() == written.path.read_bytes()
    other = manifest.with_name("other.csv")
    write_split(f"csv:{manifest}", group="patient", seed=2, out=other)
    assert other.read_bytes() != written.path.read_bytes()


def test_a_folder_gets_a_manifest(tmp_path, make_images):
    make_images(tmp_path / "x", [f"{c}/{i}.png" for c in ("blue_nevus", "mel") for i in range(10)])
    (tmp_path / "x/card.yaml").write_text("licence: mine")
    written = write_split("folder:x", root=tmp_path, ratios=(1, 0, 1))
    assert written.path == tmp_path / "x/split.csv"
    assert written.counts == {"blue_nevus": [5, 0, 5], "mel": [5, 0, 5]}
    dataset = CsvDataset("x/split.csv")
    splits = dataset.load(tmp_path)
    assert dataset.class_names == ("blue nevus", "mel")
    assert dataset.licence == "mine"
    assert sum(map(len, splits.values())) == 20


def test_nothing_is_overwritten(manifest):
    write_split(f"csv:{manifest}")
    with pytest.raises(UsageError, match=r"skin-split\.csv' .*--out"):
        write_split(f"csv:{manifest}")
    with pytest.raises(UsageError, match=r"skin\.yaml' .*--out"):
        write_split(f"csv:{manifest}", out=manifest.with_name("skin.CSV"))


def test_what_cannot_be_split(manifest, tmp_path, make_images):
    with pytest.raises(UsageError, match=r"'npz:x' .*csv:PATH or folder:PATH"):
        write_split("npz:x")
    with pytest.raises(DataError, match=r"'patients'.*'patient'"):
        write_split(f"csv:{manifest}", group="patients")
    with pytest.raises(UsageError, match="relative"):
        write_split(f"csv:{manifest}", out=tmp_path / "other" / "x.csv")
    split = write_split(f"csv:{manifest}").path
    with pytest.raises(UsageError, match="split"):
        write_split(f"csv:{split}")
    make_images(tmp_path / "f", ["train/a/1.png", "test/a/1.png"])
    with pytest.raises(UsageError, match="split"):
        write_split(f"folder:{tmp_path / 'f'}")
    with pytest.raises(UsageError, match="'patient'"):
        write_split(f"folder:{tmp_path / 'f'}", group="patient")


@pytest.mark.parametrize(
    "text", ["", "6/1", "6/1/3/1", "0/1/1", "6/1/0", "a/b/c", "6/-1/3", "inf/1/1"]
)
def test_bad_ratios(text):
    with pytest.raises(UsageError, match=f"'{text}'.*train/val/test"):
        parse_ratios(text)


def test_ratios():
    assert parse_ratios("6/1/3") == (6, 1, 3)
    assert parse_ratios("0.7/0/0.3") == (0.7, 0, 0.3)


def test_what_a_run_refuses_of_images_is_refused_here(manifest):
    source = f"csv:{manifest}"
    text = manifest.read_text()
    lines = text.splitlines()
    wrong = [f"{lines[0]},sha256", f"{lines[1]},{'0' * 64}", *(f"{line}," for line in lines[2:])]
    manifest.write_text("\n".join(wrong))
    with pytest.raises(DataError, match=r"row 2: .*0\.png'.*SHA-256"):
        write_split(source)
    manifest.write_text(text)
    deep = np.full((2, 2), 900, dtype=np.uint16)
    for i in range(60):
        Image.fromarray(deep + i).save(manifest.with_name(f"{i}.png"))
    with pytest.raises(DataError, match=r"white.*bits: "):
        write_split(source)
    manifest.with_suffix(".yaml").write_text("columns: {path: file}\nbits: 12\n")
    write_split(source)
