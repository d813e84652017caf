"""Where the images of a table may lie: beside it, and below what the user names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from vipbench.api import DataError
from vipbench.datasets.csv_manifest import CsvDataset
from vipbench.datasets.folder import FolderDataset
from vipbench.datasets.pneumonia import PneumoniaDataset

FILES = [f"p/{i}.png" for i in range(1, 5)]


@pytest.fixture
def share(tmp_path, make_images) -> Path:
    """A folder of images beside a project, and a secret beside both."""
    make_images(tmp_path / "share", FILES)
    make_images(tmp_path, ["secret.png"])
    (tmp_path / "project").mkdir()
    return tmp_path / "share"


def load(share: Path, paths: list[str], root: Path | None = None, card: str = ""):
    table = share.parent / "project/t.csv"
    splits = ["train", "train", "test", "test"]
    rows = [
        f'"{p}",{"ab"[i % 2]},{s}\n' for i, (p, s) in enumerate(zip(paths, splits, strict=True))
    ]
    table.write_text("path,label,split\n" + "".join(rows))
    if card:
        table.with_suffix(".yaml").write_text(card)
    dataset = CsvDataset(str(table))
    dataset.image_root = root
    return dataset.load(None)


def ids(splits) -> list[str]:
    return sorted(name for split in splits.values() for name in split.ids)


FORMS = {
    "relative": lambda share: FILES,
    "absolute": lambda share: [str(share / name) for name in FILES],
    "up and down": lambda share: [f"../share/{name}" for name in FILES],
    "backslashes": lambda share: [name.replace("/", "\\") for name in FILES],
    "mixed": lambda share: [f".\\{name}" for name in FILES],
    "without endings": lambda share: [name.removesuffix(".png") for name in FILES],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("by", ["flag", "card", "absolute card"])
def test_a_named_folder_is_read_and_images_are_called_by_their_path_below_it(share, form, by):
    paths = FORMS[form](share)
    card = {"flag": "", "card": "images: ../share", "absolute card": f"images: {share}"}[by]
    splits = load(share, paths, share if by == "flag" else None, card)
    assert ids(splits) == FILES
    assert splits["test"].open(0).size == (2, 2)


@pytest.mark.parametrize("form", ["absolute", "up and down"])
def test_nothing_else_is_read_and_the_way_out_is_named(share, form):
    with pytest.raises(DataError, match=r"row 2: .*project'") as caught:
        load(share, FORMS[form](share))
    assert "--images DIR" in str(caught.value)
    assert re.search("`images: DIR`.*'t.yaml'", str(caught.value))
    for path in ("../secret.png", str(share.parent / "secret.png")):
        with pytest.raises(DataError, match=r"row 5: .*share', .*project'"):
            load(share, [*FILES[:3], path], share)


def test_links_are_read_where_they_end_below_a_named_folder(share, make_images):
    project = share.parent / "project"
    (project / "p").symlink_to(share / "p", target_is_directory=True)
    with pytest.raises(DataError, match=r"row 2: .*'p/1\.png' .*share/p/1\.png"):
        load(share, FILES)
    assert ids(load(share, FILES, share)) == FILES
    (share / "p/1.png").unlink()
    (share / "p/1.png").symlink_to(share.parent / "secret.png")
    with pytest.raises(DataError, match=r"row 2: .*secret\.png"):
        load(share, FILES, share)
    # A folder whose links lead to the share.
    for name in FILES:
        link = project / "classes" / ("a" if name[2] in "12" else "b") / Path(name).name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(share / name)
    (share / "p/1.png").unlink()
    make_images(share, ["p/1.png"])
    dataset = FolderDataset(str(project / "classes"))
    with pytest.raises(DataError, match=r"link.*--images DIR"):
        dataset.load(None)
    dataset.image_root = share
    assert sum(map(len, dataset.load(None).values())) == 4


def test_a_file_beside_the_table_and_one_below_the_named_folder(share, make_images):
    make_images(share.parent / "project", ["p/1.png", "q/9.png"])
    splits = load(share, [*FILES[:3], "q/9.png"], share)
    assert ids(splits) == [*FILES[:3], "q/9.png"]
    assert str(splits["train"].images[0]).startswith(str(share))  # the named folder comes first
    with pytest.raises(DataError, match=r"'p/1\.png'"):
        load(share, [*FILES[:3], str(share.parent / "project/p/1.png")], share)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("C:\\scans\\p\\4.png", "Windows"),
        ("C:/scans/4.png", "Windows"),
        ("p/gone", r"'.*share/p/gone'.*--images DIR"),
        ("4.png", r"'.*share/p'"),
        ("p/5", r"'5\.jpg', '5\.png'"),
        ("P/4.png", r"'p/4\.png'"),
        ("./p/3.png", r"'p/3\.png' .*listed"),
        ("p\\3.png", r"'p/3\.png' .*listed"),
    ],
)
def test_paths_that_name_no_image(share, make_images, path, message):
    make_images(share, ["p/5.png", "p/5.jpg"])
    with pytest.raises(DataError, match=rf"row 5.*{message}|{message}.*row 5"):
        load(share, [*FILES[:3], path], share)


def test_a_folder_that_is_none(share):
    with pytest.raises(DataError, match=r"--images .*gone'"):
        load(share, FILES, share / "gone")
    with pytest.raises(DataError, match=r"t\.yaml': images names '.*\.\./gone"):
        load(share, FILES, card="images: ../gone")


@pytest.mark.parametrize("layout", ["folders", "split file"])
def test_published_data_whose_images_are_on_a_share(tmp_path, make_images, layout):
    names = [
        f"{s}/{c}/{c}-{s}{i}.png"
        for s in ("train", "test")
        for c in ("NORMAL", "PNEUMONIA")
        for i in range(12)
    ]
    make_images(tmp_path / "share", names)
    home = tmp_path / "data/chest_xray"
    home.mkdir(parents=True)
    if layout == "folders":
        for split in ("train", "test"):
            (home / split).symlink_to(tmp_path / "share" / split, target_is_directory=True)
    else:
        rows = [
            [n, int("PNEUMONIA" in n), "pneumonia" if "PNEUMONIA" in n else "normal lung"]
            for n in names
        ]
        parts = {s: [row for row in rows if row[0].startswith(s)] for s in ("train", "test")}
        (home / "split_pneumonia.json").write_text(json.dumps({**parts, "val": []}))
    dataset = PneumoniaDataset(None)
    with pytest.raises(DataError, match=r"--images DIR"):
        dataset.load(tmp_path / "data")
    dataset.image_root = tmp_path / "share"
    splits = dataset.load(tmp_path / "data")
    assert sum(map(len, splits.values())) == len(names)
    dataset.image_root = tmp_path / "gone"
    with pytest.raises(DataError, match=r"--images .*gone'"):
        dataset.load(tmp_path / "data")
