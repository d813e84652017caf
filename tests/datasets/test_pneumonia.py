from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from vipbench.api import DataError
from vipbench.datasets.pneumonia import PneumoniaDataset, patient_of
from vipbench.engine.planning.leaks import group_overlap
from vipbench.errors import UsageError


def published(make_images, folder: Path, normal: str = "NORMAL", sick: str = "PNEUMONIA") -> None:
    """60 patients in train, 20 in test, two images of each; half of them sick."""
    for split, first, n in (("train", 1000, 60), ("test", 2000, 20)):
        for p in range(first, first + n):
            if p % 2:
                names = [f"{normal}/NORMAL-{p}-000{i}.jpeg" for i in (1, 2)]
            else:
                names = [f"{sick}/BACTERIA-{p}-0001.jpeg", f"{sick}/VIRUS-{p}-0002.jpeg"]
            make_images(folder / split, names)


def load(root: Path):
    dataset = PneumoniaDataset(None)
    return dataset, dataset.load(root)


@pytest.mark.parametrize("place", ["chest_xray", "pneumonia", "pneumonia/chest_xray", ""])
def test_the_published_layout(tmp_path, make_images, place):
    published(make_images, tmp_path / place)
    dataset, splits = load(tmp_path)
    assert dataset.class_names == ("normal lung", "pneumonia")
    assert set(dataset.symptoms) == set(dataset.class_names)
    assert {k: v.counts(2) for k, v in splits.items()} == {
        "train": [54, 54],
        "val": [6, 6],
        "test": [20, 20],
    }
    assert group_overlap(splits) is None  # val holds whole patients
    assert re.search("val .*groups, seed 1", dataset.caption)
    assert "4710/522/624" in dataset.caption
    assert len(set(splits["train"].groups)) == 54
    names = [Path(i).name for i in splits["train"].ids]
    assert names == sorted(names[:54]) + sorted(names[54:])


def test_the_val_that_is_taken_depends_on_no_name(tmp_path, make_images):
    def taken() -> set[str]:
        return set(load(tmp_path)[1]["val"].digests)

    published(make_images, tmp_path)
    before = taken()
    for image in (tmp_path / "train").rglob("*.jpeg"):
        kind, patient, number = image.stem.split("-")
        image.rename(image.with_name(f"{kind}-{9999 - int(patient)}-{number}.jpeg"))
    assert taken() == before


def test_the_mirror_keeps_its_val(tmp_path, make_images):
    for split, patients in (("train", "12"), ("val", "3"), ("test", "1")):
        for p in patients:
            make_images(
                tmp_path / "chest_xray" / split,
                [f"PNEUMONIA/person{p}_virus_1.jpeg", f"NORMAL/IM-000{p}-0001.jpeg"],
            )
    dataset, splits = load(tmp_path)
    assert {k: len(v) for k, v in splits.items()} == {"train": 4, "val": 2, "test": 2}
    assert "taken" not in dataset.caption
    # person1 of the test set is another person than person1 of the training set.
    assert group_overlap(splits) is None
    assert set(splits["test"].groups) == {"test/person1", "test/IM-0001"}


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("NORMAL-1003233-0001.jpeg", "1003233"),
        ("x/VIRUS-7-12.jpeg", "7"),
        ("BACTERIA-7-0003.jpeg", "7"),
        ("person1000_bacteria_2931.jpeg", "train/person1000"),
        ("person3_virus_15.jpeg", "train/person3"),
        ("IM-0115-0001.jpeg", "train/IM-0115"),
        ("NORMAL2-IM-0935-0001-0002.jpeg", "train/NORMAL2-IM-0935"),
        ("anything.png", "anything"),
    ],
)
def test_patients_from_file_names(name, patient):
    assert patient_of(name, in_test=False) == patient


def test_renamed_folders_and_the_split_file_agree(tmp_path, make_images):
    source = tmp_path / "a/pneumonia/image"
    published(make_images, source, "normal lung", "pneumonia")
    for path in sorted((source / "train").glob("*/*-10[01]*")):
        target = source / "val" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    folders, splits = load(tmp_path / "a")
    key = folders.fingerprint(splits)
    assert len(splits["val"]) == 40
    listing = {
        name: [
            [path, int(label), folders.class_names[label]]
            for path, label in zip(split.ids, split.labels, strict=True)
        ]
        for name, split in splits.items()
    }
    (source.parent / "split_pneumonia.json").write_text(json.dumps(listing))
    listed, again = load(tmp_path / "a")
    assert listed.fingerprint(again) == key
    assert again["train"].groups == splits["train"].groups


def test_the_official_split_file(shared, tmp_path):
    source = shared / "data/official/split_pneumonia.json"
    stored = json.loads(source.read_text())
    folder = tmp_path / "pneumonia"
    for split in stored:
        for name in ("normal lung", "pneumonia"):
            (folder / "image" / split / name).mkdir(parents=True)
    for rows in stored.values():
        for relative, *_ in rows:
            (folder / "image" / relative).touch()
    (folder / source.name).write_text(source.read_text())
    dataset, splits = load(tmp_path)
    assert dataset.caption == ""
    for split, rows in stored.items():
        assert list(splits[split].ids) == [row[0] for row in rows]
    most = max(map(splits["train"].groups.count, set(splits["train"].groups)))
    assert most == 30
    found = group_overlap(splits)
    assert found is not None
    assert re.search("train .*val .*238 groups", found)
    assert "test" not in found.split(", for instance")[0]


def test_what_is_wrong_is_named(tmp_path, make_images):
    with pytest.raises(DataError, match=r"split_pneumonia\.json .*train/.*test/.*mendeley.*CC BY"):
        load(tmp_path)
    with pytest.raises(UsageError, match="'pneumonia:x'"):
        PneumoniaDataset("x")
    make_images(tmp_path / "chest_xray", ["train/NORMAL/a.jpeg", "test/NORMAL/b.jpeg"])
    with pytest.raises(DataError, match=r"train' .*'pneumonia'"):
        load(tmp_path)
    make_images(tmp_path / "chest_xray", ["train/COVID/a.jpeg"])
    with pytest.raises(DataError, match=r"COVID' .*'normal', 'normal lung'"):
        load(tmp_path)
