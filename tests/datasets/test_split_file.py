from __future__ import annotations

import json
from pathlib import Path

import pytest

from vipbench.api import DataError
from vipbench.datasets.split_file import SplitFileDataset
from vipbench.engine.planning.sampling import draw_support
from vipbench.errors import UsageError

ROWS = {
    "train": [
        ["a/1.png", 0, "blue_nevus"],
        ["b/1.png", 1, "melanoma"],
        ["a/2.png", 0, "blue_nevus"],
    ],
    "val": [["a/3.png", 0, "blue_nevus"]],
    "test": [["b/2.png", 1, "melanoma"], ["a/4.png", 0, "blue_nevus"]],
}


def write(path: Path, content) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def load(path: Path, root: Path | None = None):
    dataset = SplitFileDataset(str(path))
    return dataset, dataset.load(root)


@pytest.mark.parametrize("folder", ["", "image", "Some Folder"])
def test_images_beside_the_file_or_in_a_folder_there(tmp_path, make_images, folder):
    make_images(tmp_path / folder, [row[0] for rows in ROWS.values() for row in rows])
    (tmp_path / "aaa").mkdir(exist_ok=True)
    dataset, splits = load(write(tmp_path / "split_Skin.json", ROWS))
    assert dataset.name == "Skin"
    assert dataset.class_names == ("blue nevus", "melanoma")
    assert splits["train"].ids == ("a/1.png", "b/1.png", "a/2.png")  # the stored order
    assert splits["train"].labels.tolist() == [0, 1, 0]
    assert splits["test"].labels.tolist() == [1, 0]
    assert splits["train"].groups is None
    assert splits["val"].open(0).size == (2, 2)


def test_a_card_says_where_images_are_and_what_they_show(tmp_path, make_images):
    make_images(tmp_path / "x/y", [row[0] for rows in ROWS.values() for row in rows])
    path = write(tmp_path / "split.json", ROWS)
    with pytest.raises(
        DataError,
        match=r"'a/1\.png' .*--images DIR, or `images: DIR`",
    ):
        load(path)
    card = tmp_path / "split.yaml"
    card.write_text("images: x/y\nclass_names: {blue_nevus: mole}\nmodality: X-ray")
    dataset, _ = load(path)
    assert dataset.class_names == ("mole", "melanoma")
    card.write_text("images: z")
    with pytest.raises(DataError, match=r"images .*z'"):
        load(path)
    # A root that the user names may lie anywhere: in the card, or on the command line.
    (tmp_path / "home").mkdir()
    path = write(tmp_path / "home/split.json", ROWS)
    (tmp_path / "home/split.yaml").write_text("images: ../x/y")
    assert load(path)[1]["train"].ids == ("a/1.png", "b/1.png", "a/2.png")
    (tmp_path / "home/split.yaml").unlink()
    dataset = SplitFileDataset(str(path))
    dataset.image_root = tmp_path / "x/y"
    assert dataset.load(None)["train"].ids == ("a/1.png", "b/1.png", "a/2.png")


def changed(split: str, index: int, row) -> dict:
    content = json.loads(json.dumps(ROWS))
    content[split][index] = row
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "JSON: .*line 1"),
        ("[1]", "'train', 'val', 'test'"),
        ({**ROWS, "val": {"a": 1}}, "'val'"),
        ({"train": [], "val": [], "test": []}, "images"),
        (changed("train", 1, ["b/1.png", 1]), r"train\[1\] .*\['b/1\.png', 1\]"),
        (changed("train", 1, ["b/1.png", "1", "m"]), r"train\[1\] .*\[\"rel"),
        (changed("train", 1, ["b/1.png", True, "m"]), r"train\[1\]"),
        (changed("train", 1, ["b/1.png", -1, "m"]), r"train\[1\]"),
        (changed("train", 1, "abc"), r"train\[1\] .*'abc'"),
        (changed("test", 0, ["b/2.png", 1, "nevus"]), r"test\[0\]: .* 1 .*'nevus'"),
        (changed("test", 0, ["b/2.png", 3, "x"]), "label 2.* label 3"),
        (
            changed("test", 0, ["b/2.png", 2, "Melanoma"]),
            "'Melanoma' .*label 2",
        ),
        (
            changed("test", 0, ["/etc/passwd", 1, "melanoma"]),
            r"test\[0\]: .*'/etc/passwd'",
        ),
        (changed("test", 0, ["C:\\x.png", 1, "melanoma"]), r"test\[0\]: .*C:.* Windows"),
        (
            changed("test", 0, ["../b/2.png", 1, "melanoma"]),
            r"test\[0\]: .*'\.\./b/2\.png' .*--images DIR",
        ),
        (changed("test", 0, ["a/../../2.png", 1, "melanoma"]), "outside"),
        (
            changed("test", 0, ["a/1.png", 0, "blue_nevus"]),
            r"train \(.*train\[0\]\)",
        ),
        (changed("train", 2, ["a/1.png", 1, "melanoma"]), r"classes: .*train\[0\]"),
        (changed("train", 2, ["a/1.png", 0, "blue_nevus"]), r"twice: .*train\[2\]"),
        (
            changed("test", 0, ["b/gone.png", 1, "melanoma"]),
            r"test\[0\]: .*gone\.png'.*miss",
        ),
        (changed("test", 0, ["B/2.PNG", 1, "melanoma"]), r"'B/2\.PNG' .*'b/2\.png'"),
        (changed("test", 0, ["b", 1, "melanoma"]), r"'.*b'.*missing"),
    ],
)
def test_bad_files(tmp_path, make_images, content, message):
    make_images(tmp_path, [row[0] for rows in ROWS.values() for row in rows])
    with pytest.raises(DataError, match=message) as caught:
        load(write(tmp_path / "split.json", content))
    assert "split" in str(caught.value)


def test_a_link_out_of_the_folder(tmp_path, make_images):
    make_images(tmp_path / "data", [row[0] for rows in ROWS.values() for row in rows])
    secret = tmp_path / "secret.png"
    secret.touch()
    (tmp_path / "data/b/2.png").unlink()
    (tmp_path / "data/b/2.png").symlink_to(secret)
    with pytest.raises(DataError, match=r"test\[0\]: .*'b/2\.png' .*secret"):
        load(write(tmp_path / "data/split.json", ROWS))


def test_how_many_are_missing(tmp_path, make_images):
    make_images(tmp_path, ["a/1.png"])
    with pytest.raises(
        DataError, match=r"train\[1\]: .*b/1\.png' is missing, and 4 more: 'a/2\.png'"
    ):
        load(write(tmp_path / "split.json", ROWS))


def test_no_file(tmp_path):
    with pytest.raises(UsageError, match="split:FILE"):
        SplitFileDataset(None)
    with pytest.raises(DataError, match="looked"):
        load(Path("gone.json"), tmp_path)
    with pytest.raises(DataError, match="folder"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["skin", "pneumonia"])
def test_the_official_files(shared, tmp_path, name):
    source = shared / f"data/official/split_{name}.json"
    content = json.loads(source.read_text())
    for rows in content.values():
        for relative, *_ in rows:
            path = tmp_path / "image" / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    write(tmp_path / source.name, source.read_text())
    dataset, splits = load(tmp_path / source.name)
    for split, rows in content.items():
        assert list(splits[split].ids) == [row[0] for row in rows]
        assert splits[split].labels.tolist() == [row[1] for row in rows]
    if name == "skin":
        golden = json.loads((shared / "golden/coop_sampler_derm7pt.json").read_text())
        names = dataset.class_names
        drawn = draw_support(splits["train"], splits["val"], 2, names, 4, 2, "coop", "k")
        assert [splits["train"].ids[i] for i in drawn.train] == golden["seed2_shots4"]["train"]
