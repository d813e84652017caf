from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from vipbench.api import DataError
from vipbench.datasets.derm7pt import GROUPS, Derm7ptDataset
from vipbench.errors import UsageError

DIAGNOSES = [diagnosis for every in GROUPS.values() for diagnosis in every]
META = ["case_num", "diagnosis", "clinic", "derm", "case_id"]


def write_csv(path: Path, header: list[str], rows: list[list]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def write_release(folder: Path, cases: list[tuple[str, str]], indexes: dict[str, list]) -> None:
    """cases: (diagnosis, derm path); indexes: split of the release -> positions."""
    rows = [[i + 1, d, derm.replace("l", "c"), derm, ""] for i, (d, derm) in enumerate(cases)]
    write_csv(folder / "meta/meta.csv", META, rows)
    for name in ("train", "valid", "test"):
        write_csv(folder / f"meta/{name}_indexes.csv", ["indexes"], [[i] for i in indexes[name]])


@pytest.fixture
def release(tmp_path, make_images) -> Path:
    """60 cases, each diagnosis three times, a third in each split, in no order."""
    folder = tmp_path / "derm7pt/release_v0"
    cases = [(DIAGNOSES[i % 20], f"D{i % 3}/X{(i * 37) % 60:03d}.{'JPG' if i % 7 else 'jpg'}")
             for i in range(60)]  # fmt: skip
    make_images(folder / "images", [derm for _, derm in cases])
    order = {"train": list(range(0, 20)), "valid": list(range(20, 40)), "test": list(range(40, 60))}
    write_release(folder, cases, order)
    return folder


def load(root: Path, argument: str | None = None):
    dataset = Derm7ptDataset(argument)
    return dataset, dataset.load(root)


def test_the_binary_task_of_the_release(release, tmp_path):
    dataset, splits = load(tmp_path)
    assert dataset.name == "derm7pt"
    assert dataset.class_names == ("melanoma", "nevus")
    assert set(dataset.symptoms) == {"melanoma", "nevus"}
    # 6 diagnoses are melanomas and 7 nevi; of each, one case in each split.
    assert {k: v.counts(2) for k, v in splits.items()} == {name: [6, 7] for name in splits}
    names = [Path(i).name for i in splits["test"].ids]
    assert names == sorted(names[:6]) + sorted(names[6:])
    assert all(i.startswith("images/D") for i in splits["test"].ids)
    assert re.search("13/13/13 .*346/161/320", dataset.caption)


def test_the_task_with_five_classes(release, tmp_path):
    dataset, splits = load(tmp_path, "5-way")
    assert dataset.name == "derm7pt-5way"
    assert len(dataset.class_names) == 5
    assert set(dataset.symptoms) == set(dataset.class_names)
    assert {k: v.counts(5) for k, v in splits.items()} == {n: [1, 7, 6, 5, 1] for n in splits}


@pytest.mark.parametrize("place", ["", "derm7pt", "release_v0", "Derm7pt/release_v0"])
def test_where_the_release_may_lie(release, tmp_path, place):
    root = tmp_path / "elsewhere"
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    release.rename(root / place)
    assert len(load(root)[1]["train"]) == 13


def test_all_layouts_give_the_same_data(release, tmp_path):
    dataset, official = load(tmp_path)
    key = dataset.fingerprint(official)
    vip = tmp_path / "vip/derm7pt/image"
    listing = {}
    for split, part in official.items():
        listing[split] = []
        for i, path in enumerate(part.images):
            name = dataset.class_names[part.labels[i]]
            target = vip / split / name / Path(path).name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(Path(path).read_bytes())
            listing[split].append([f"{split}/{name}/{target.name}", int(part.labels[i]), name])
    folders, splits = load(tmp_path / "vip")
    assert folders.fingerprint(splits) == key
    assert splits["train"].ids[0] == f"train/melanoma/{Path(official['train'].ids[0]).name}"
    (vip.parent / "split_skin.json").write_text(json.dumps(listing))
    listed, splits = load(tmp_path / "vip")
    assert listed.fingerprint(splits) == key


def test_the_official_split_file_agrees_with_the_rule(shared, tmp_path):
    stored = json.loads((shared / "data/official/split_skin.json").read_text())
    folder = tmp_path / "release_v0"
    cases, indexes = [], {"train": [], "valid": [], "test": []}
    for split, rows in stored.items():
        for number, (relative, label, _) in enumerate(rows):
            kinds = GROUPS["NEV"] if label else GROUPS["MEL"]
            name = Path(relative).name
            path = folder / "images" / name[:3] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            indexes["valid" if split == "val" else split].append(len(cases))
            cases.append((kinds[number % len(kinds)], f"{name[:3]}/{name}"))
            # Others stand between, and are in no binary split.
            indexes["valid" if split == "val" else split].append(len(cases))
            cases.append(("lentigo", "none/none.jpg"))
    write_release(folder, cases, indexes)
    dataset, splits = load(tmp_path)
    assert dataset.caption == ""  # the published numbers
    for split, rows in stored.items():
        assert [Path(i).name for i in splits[split].ids] == [Path(row[0]).name for row in rows]
        assert splits[split].labels.tolist() == [row[1] for row in rows]


def bad_release(folder: Path, match: str, argument: str | None = None) -> None:
    with pytest.raises(DataError, match=match):
        load(folder, argument)


def test_rows_that_are_wrong_are_named(release, tmp_path, make_images):
    cases = [("melanoma", "a/1.jpg"), ("blue nevus", "a/2.jpg"), ("Lentigo", "a/3.jpg")]
    make_images(release / "images", ["a/1.jpg", "a/2.jpg", "a/3.jpg"])
    fine = {"train": [0], "valid": [1], "test": [2]}
    write_release(release, cases, fine)
    assert len(load(tmp_path)[1]["test"]) == 0
    write_release(release, cases, {**fine, "test": [3]})
    bad_release(tmp_path, r"test_indexes\.csv', row 2: index '3' is out of range; expected 0 to 2")
    write_release(release, cases, {**fine, "test": [-1]})
    bad_release(tmp_path, "index '-1' is out of range")
    write_release(release, cases, {**fine, "test": ["x"]})
    bad_release(tmp_path, "index 'x' is out of range")
    write_release(release, cases, {**fine, "test": [2, 0]})
    bad_release(tmp_path, r"test_indexes\.csv', row 3: index 0 is used already: .*train_indexes")
    write_release(release, [*cases[:2], ("melanom", "a/3.jpg")], fine)
    bad_release(tmp_path, r"meta\.csv', row 4: unknown diagnosis 'melanom'; did you mean 'mel")
    write_release(release, [*cases[:2], ("", "a/3.jpg")], fine)
    bad_release(tmp_path, r"meta\.csv', row 4 has no diagnosis or derm")
    write_release(release, [("melanoma", "A/1.JPG"), *cases[1:]], fine)
    bad_release(tmp_path, r"meta\.csv', row 2: .* 'images/a/1\.jpg'")
    write_release(release, [("melanoma", "a/9.jpg"), *cases[1:]], fine)
    bad_release(tmp_path, r"meta\.csv', row 2: image '.*9\.jpg' is missing")
    write_release(release, [("melanoma", "../../../x.jpg"), *cases[1:]], fine)
    bad_release(tmp_path, r"meta\.csv', row 2: path .* leads to .*, outside of")
    write_csv(release / "meta/meta.csv", ["diagnosis", "image"], [])
    bad_release(tmp_path, r"meta\.csv' has no column 'derm'; its columns are 'diagnosis', 'image'")
    write_release(release, cases, fine)
    (release / "meta/valid_indexes.csv").unlink()
    bad_release(tmp_path, r"valid_indexes\.csv' cannot be read: No such file")


def test_what_was_looked_for(tmp_path):
    bad_release(
        tmp_path, r"meta/meta\.csv .*split_skin\.json .*derm7pt'.*derm\.cs\.sfu\.ca.*registr"
    )
    bad_release(tmp_path, r"looked for release_v0/meta/meta\.csv", "5-way")
    with pytest.raises(UsageError, match=r"'7-way'.*'5-way'"):
        Derm7ptDataset("7-way")


def test_folders_that_do_not_fit(tmp_path, make_images):
    base = tmp_path / "derm7pt/image"
    make_images(base, [f"{s}/{c}/1.jpg" for s in ("train", "val") for c in ("melanoma", "nevus")])
    bad_release(tmp_path, r"folder '.*test' is missing")
    make_images(base, ["test/melanoma/2.jpg"])
    bad_release(tmp_path, r"folder '.*test' has no class folder 'nevus'")
    make_images(base, ["test/naevus/2.jpg"])
    bad_release(tmp_path, r"folder '.*naevus' is .*'melanoma', 'nevus'")


def test_a_split_file_with_other_classes(tmp_path):
    (tmp_path / "derm7pt").mkdir()
    rows = {"train": [["a.jpg", 0, "nevus"], ["b.jpg", 1, "melanoma"]], "val": [], "test": []}
    (tmp_path / "derm7pt/split_skin.json").write_text(json.dumps(rows))
    bad_release(tmp_path, r"has the classes 'nevus', 'melanoma'; expected 'melanoma', 'nevus'")
