from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from vipbench.api import DataError
from vipbench.datasets.csv_manifest import CsvDataset, no_split
from vipbench.errors import UsageError

HEADER = "path,label,split\n"
ROWS = "a/1.png,NV,train\na/2.png,mel,train\na/3.png,NV,val\na/4.png,NV,test\na/5.png,mel,test\n"


@pytest.fixture
def folder(tmp_path, make_images) -> Path:
    make_images(tmp_path, [f"a/{i}.png" for i in range(1, 31)])
    return tmp_path


def load(folder: Path, text: str, card: str | None = None):
    (folder / "skin.csv").write_text(text, encoding="utf-8")
    if card is not None:
        (folder / "skin.yaml").write_text(card)
    dataset = CsvDataset("skin.csv")
    return dataset, dataset.load(folder)


def test_the_plain_form(folder):
    dataset, splits = load(folder, "\ufeff" + HEADER + ROWS.replace("\n", "\r\n"))
    assert dataset.name == "skin"
    assert dataset.class_names == ("NV", "mel")
    assert {k: v.ids for k, v in splits.items()} == {
        "train": ("a/1.png", "a/2.png"),
        "val": ("a/3.png",),
        "test": ("a/4.png", "a/5.png"),
    }
    assert splits["test"].labels.tolist() == [0, 1]
    assert splits["train"].groups is None
    assert dataset.caption == ""


def test_a_card_names_columns_classes_and_the_image_folder(tmp_path, make_images):
    make_images(tmp_path / "pictures", [f"{i}.png" for i in range(1, 6)])
    text = (
        "case,file,finding,part,patient\n"
        'x,1.png,"nevus, other",TRAIN,p1\ny,2.png,mel,train,\n'
        '\nz,3.png,"nevus, other",Test,p3\nw,4.png,mel,test,p4\n'
    )
    card = (
        "columns: {path: file, label: finding, split: part, group: patient}\nimages: pictures\n"
        "class_names: {mel: melanoma}\nmodality: dermoscopy image\nsharing: allowed\n"
        "symptoms: {melanoma: [jagged], 'nevus, other': [round]}\n"
    )
    dataset, splits = load(tmp_path, text + "v,5.png,mel,valid,p5\n", card)
    assert dataset.class_names == ("melanoma", "nevus, other")
    assert dataset.symptoms == {"melanoma": ("jagged",), "nevus, other": ("round",)}
    assert dataset.templates == ("a dermoscopy image of {}.",)
    assert dataset.sharing == "allowed"
    assert splits["train"].groups == ("p1", "2.png")  # no group: a group of its own
    assert splits["val"].groups == ("p5",)


def test_val_is_taken_from_train_by_whole_groups(folder):
    rows = [f"a/{i}.png,{'NV' if i % 2 else 'mel'},train,p{i // 3}" for i in range(1, 25)]
    rows += ["a/25.png,NV,test,q", "a/26.png,mel,test,r"]
    dataset, splits = load(folder, "path,label,split,group\n" + "\n".join(rows))
    assert re.search("val .*groups, seed 1", dataset.caption)
    assert len(splits["val"]) > 0
    assert not set(splits["val"].groups) & set(splits["train"].groups)
    assert len(splits["val"]) + len(splits["train"]) == 24


@pytest.mark.parametrize("grouped", [False, True])
def test_names_and_order_have_no_say_in_the_val_that_is_taken(folder, grouped):
    def taken(stem: str, group: str, step: int) -> set[str]:
        rows = []
        for i in range(1, 25):
            name = f"a/{stem}{i}.png"
            if not (folder / name).exists():
                (folder / f"a/{i}.png").rename(folder / name)
            rows.append(f"{name},{'NV' if i % 2 else 'mel'},train,{group}{-i // 3}")
        rows += ["a/25.png,NV,test,q", "a/26.png,mel,test,r"]
        text = "path,label,split,group\n" + "\n".join(rows[::step])
        splits = load(folder, text if grouped else text.replace(",group\n", ",other\n", 1))[1]
        assert (splits["val"].groups is not None) == grouped
        return set(splits["val"].digests)

    assert taken("", "p", 1) == taken("renamed", "other", -1)


def test_no_split_column_names_the_command(folder):
    text = "path,label,group\na/1.png,NV,p\na/2.png,mel,q\n"
    with pytest.raises(UsageError) as caught:
        load(folder, text)
    command = "vipbench dataset split csv:skin.csv --group group --ratios 6/1/3 --seed 1"
    assert command in str(caught.value)
    with pytest.raises(UsageError, match=r"--group COLUMN"):
        load(folder, "path,label\na/1.png,NV\na/2.png,mel\n")
    with pytest.raises(UsageError, match=r"--group patient_id --ratios 6/1/3"):
        load(folder, "path,label,patient_id\na/1.png,NV,p\na/2.png,mel,q\n")
    assert "--images '../my scans'" in no_split("csv:skin.csv", "group", images=Path("../my scans"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (HEADER, "rows"),
        (
            "file,label,split\na,b,train\n",
            r"row 1: .*'path'.*'file', 'label'",
        ),
        ("path,class,split\n", r"'label'.*`columns: \{label: NAME\}`"),
        ("path,label,split,label\n", "row 1: .*'label' .*2 times"),
        (HEADER + "a/1.png,NV\n", "row 2 has 2 .* 3"),
        (HEADER + ",NV,train\n", "row 2 .*path"),
        (HEADER + "a/1.png, ,train\n", "row 2 .*label"),
        (HEADER + "a/1.png,NV,holdout\n", "row 2: .*'holdout'"),
        (HEADER + "a/1.png,NV,\n", "row 2: .*''"),
        (HEADER + "a/1.png,NV,train\na/2.png,mel,train\n", "split 'test'"),
        (HEADER + ROWS + "a/1.png,NV,train\n", r"'a/1\.png' .*row 2 and .*row 7"),
        (HEADER + ROWS + "a/1.png,mel,train\n", r"classes: .*row 2 and .*row 7"),
        (
            HEADER + ROWS + "a/1.png,NV,test\n",
            r"train \(.*row 2\).*test \(.*row 7",
        ),
        (HEADER + ROWS + "a/99.png,NV,test\n", r"row 7: .*99\.png'.*missing"),
        (HEADER + ROWS + "A/6.png,NV,test\n", r"row 7: .*'a/6\.png'"),
        (HEADER + ROWS + "/a/6.png,NV,test\n", "row 7: .*'/a/6.png'"),
        (HEADER + ROWS + 'a/6.png,"NV,test\n', "row 7: "),
        (HEADER + ROWS + "a/6.png,nv,test\n", "'NV' and 'nv'"),
    ],
)
def test_bad_manifests(folder, text, message):
    with pytest.raises(DataError, match=message):
        load(folder, text)


def test_a_column_of_the_card_that_is_not_there(folder):
    with pytest.raises(DataError, match=r"'patient' .*group"):
        load(folder, HEADER + ROWS, "columns: {group: patient}")
    with pytest.raises(DataError, match=r"class_names .*'melanoma'"):
        load(folder, HEADER + ROWS, "class_names: {melanoma: x}")


def test_bad_encodings(folder):
    (folder / "skin.csv").write_bytes((HEADER + "a/é.png,NV,train\n").encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        CsvDataset("skin.csv").load(folder)
    with pytest.raises(UsageError, match="csv:PATH"):
        CsvDataset("")


def test_digests_are_checked(folder):
    def digest(name: str) -> str:
        return hashlib.sha256((folder / name).read_bytes()).hexdigest()

    head = "path,label,split,sha256\n"
    good = f"a/1.png,NV,train,{digest('a/1.png').upper()}\na/2.png,mel,train,\n"
    rest = "a/4.png,NV,test,\na/5.png,mel,test,\n"
    _, splits = load(folder, head + good + rest)
    assert len(splits["train"]) + len(splits["val"]) == 2
    with pytest.raises(DataError, match=r"row 6: '.*6\.png'.*SHA-256"):
        load(folder, head + good + rest + f"a/6.png,NV,test,{digest('a/7.png')}\n")
    (folder / "a/6.png").write_bytes((folder / "a/1.png").read_bytes())
    with pytest.raises(DataError, match=r"'a/1\.png' .*row 2, train\).*'a/6\.png'"):
        load(folder, head + good + rest + f"a/6.png,NV,test,{digest('a/6.png')}\n")


def test_the_fingerprint_follows_groups_and_splits(folder):
    def key(rows: str) -> str:
        dataset, splits = load(folder, "path,label,split,group\n" + rows)
        return dataset.fingerprint(splits)

    rows = "a/1.png,NV,train,p\na/2.png,mel,train,q\na/3.png,NV,val,r\na/4.png,NV,test,s\n"
    rows += "a/5.png,mel,test,t\n"
    one = key(rows)
    assert key(rows) == one
    assert key(rows.replace(",p\n", ",o\n")) != one
    assert key(rows.replace("NV,val", "NV,train")) != one
    assert key(rows.replace("a/5.png", "a/6.png")) != one
