from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from vipbench.api import DataError
from vipbench.datasets.folder import FolderDataset
from vipbench.datasets.reading.image_files import without_partners
from vipbench.errors import UsageError


def load(path: Path):
    dataset = FolderDataset(str(path))
    return dataset, dataset.load(None)


def files(folder: str, n: int) -> list[str]:
    return [f"{folder}/{i}.png" for i in range(n)]


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_splits_and_classes_from_folders(tmp_path, make_images, val):
    make_images(tmp_path, files("Train/blue_nevus", 11) + files("Train/melanoma", 2))
    make_images(tmp_path, files(f"{val}/blue_nevus", 1) + files(f"{val}/melanoma", 1))
    make_images(tmp_path, [*files("test/melanoma", 2), "test/blue_nevus/deep/A.JPG"])
    (tmp_path / "Train/melanoma/notes.txt").write_text("ignored")
    (tmp_path / "Train/melanoma/._0.png").write_text("ignored")
    (tmp_path / "papers").mkdir()
    dataset, splits = load(tmp_path)
    assert dataset.name == tmp_path.name
    assert dataset.class_names == ("blue nevus", "melanoma")
    assert dataset.caption == ""
    assert {k: v.counts(2) for k, v in splits.items()} == {
        "train": [11, 2],
        "val": [1, 1],
        "test": [1, 2],
    }
    assert splits["train"].ids[:3] == tuple(f"Train/blue_nevus/{i}.png" for i in (0, 1, 2))
    assert splits["train"].ids[10] == "Train/blue_nevus/10.png"  # natural order: behind 9
    assert splits["test"].ids[0] == "test/blue_nevus/deep/A.JPG"
    assert splits["test"].open(0).size == (2, 2)


def test_a_split_is_drawn_where_there_is_none(tmp_path, make_images):
    make_images(tmp_path / "a", files("one", 20) + files("two", 10))
    dataset, splits = load(tmp_path / "a")
    assert re.search("60/10/30.*stratified.*seed 1", dataset.caption)
    assert {k: v.counts(2) for k, v in splits.items()} == {
        "train": [12, 6],
        "val": [2, 1],
        "test": [6, 3],
    }
    every = [i for split in splits.values() for i in split.ids]
    assert len(set(every)) == 30
    # The same elsewhere, and whatever else is in the folder.
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    other, again = load(tmp_path / "b")
    assert {k: v.ids for k, v in again.items()} == {k: v.ids for k, v in splits.items()}
    assert other.fingerprint(again) == dataset.fingerprint(splits)


def test_a_drawn_split_depends_on_no_name(tmp_path):
    for name, first, renamed in (("normal", 0, "no finding"), ("abnormal", 100, "a b")):
        for i in range(20):
            for folder, file in ((f"a/{name}", f"{i}.png"), (f"b/{renamed}", f"x{19 - i}.png")):
                path = tmp_path / folder / file
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (2, 2), first + i).save(path)

    def shades(folder: str) -> dict[str, list[int]]:
        _, splits = load(tmp_path / folder)
        return {
            name: sorted(split.open(i).getpixel((0, 0))[0] for i in range(len(split)))
            for name, split in splits.items()
        }

    assert shades("b") == shades("a")


def test_val_is_taken_from_train_where_it_is_missing(tmp_path, make_images):
    for split in ("train", "test"):
        make_images(tmp_path, files(f"{split}/one", 20) + files(f"{split}/two", 30))
    dataset, splits = load(tmp_path)
    assert "tenth" in dataset.caption
    assert {k: v.counts(2) for k, v in splits.items()} == {
        "train": [18, 27],
        "val": [2, 3],
        "test": [20, 30],
    }
    assert all(i.startswith("train/") for i in splits["val"].ids)


def test_a_card_names_things(tmp_path, make_images):
    make_images(tmp_path, files("NV", 5) + files("mel", 5))
    (tmp_path / "card.yaml").write_text(
        "class_names: {NV: nevus}\ntemplates: ['skin with {}.']\nlicence: CC0\n"
        "symptoms: {nevus: [round spot], mel: [jagged spot]}\n"
    )
    dataset, _ = load(tmp_path)
    assert dataset.class_names == ("nevus", "mel")
    assert dataset.templates == ("skin with {}.",)
    assert dataset.symptoms == {"nevus": ("round spot",), "mel": ("jagged spot",)}
    assert dataset.licence == "CC0"
    assert dataset.caption.startswith("Split 60/10/30")


def test_natural_order_of_classes(tmp_path, make_images):
    for name in ("grade 10", "grade 2", "grade 1"):
        make_images(tmp_path, files(name, 3))
    assert load(tmp_path)[0].class_names == ("grade 1", "grade 2", "grade 10")


def layout_error(tmp_path: Path, match: str) -> None:
    with pytest.raises(DataError, match=match):
        load(tmp_path)


def test_what_is_missing_is_named(tmp_path, make_images):
    layout_error(tmp_path / "gone", r"gone' does not exist; looked for")
    layout_error(tmp_path, r"holds no folders; expected <class>/<images>")
    make_images(tmp_path, ["one/a.png"])
    layout_error(tmp_path, r"holds 1 class folders; expected two or more.*folder:.*one meant")
    (tmp_path / "two").mkdir()
    layout_error(tmp_path, r"class folder '.*two' holds no images; looked for .*\.bmp, .*\.png")
    (tmp_path / "two/scan.nii").touch()
    layout_error(tmp_path, r"two' holds no images \(it holds '\.nii' files\).*NIfTI")
    make_images(tmp_path, ["two/a.png"])
    layout_error(tmp_path, r"cannot be split: class 'one' has 1 image; 2")
    layout_error(tmp_path / "one/a.png", "is not a folder")
    with pytest.raises(UsageError, match="folder:PATH"):
        FolderDataset(None)


def test_splits_that_do_not_fit(tmp_path, make_images):
    make_images(tmp_path, files("train/one", 2) + files("train/two", 2))
    layout_error(tmp_path, "holds 'train' but no 'test'")
    make_images(tmp_path, files("test/one", 2) + files("test/tow", 2))
    layout_error(
        tmp_path, r"classes of '.*test' and '.*train' differ: .*also has 'tow' and lacks 'two'"
    )
    (tmp_path / "test/tow").rename(tmp_path / "test/two")
    make_images(tmp_path, files("val/one", 1) + files("valid/one", 1))
    layout_error(tmp_path, "'val' and 'valid', which are the same split")


@pytest.mark.parametrize(
    ("names", "notes"),
    [
        (("Training", "Testing", "Validation"), []),
        (("train_images", "test_images", "dev_images"), ["'dev_images' is read as val"]),
        (("TRAIN", "TEST", "VALID"), []),
        (("trainset", "tst", "development"), ["as val", "as test"]),
    ],
)
def test_splits_as_people_name_them(tmp_path, make_images, names, notes):
    for name in names:
        make_images(tmp_path, files(f"{name}/one", 2) + files(f"{name}/two", 3))
    dataset, splits = load(tmp_path)
    assert {k: v.counts(2) for k, v in splits.items()} == {key: [2, 3] for key in splits}
    for split, name in zip(("train", "test", "val"), names, strict=True):
        assert {i.partition("/")[0] for i in splits[split].ids} == {name}
    assert len(dataset.notes) == len(notes)
    assert all(fact in note for fact, note in zip(notes, dataset.notes, strict=True))


def test_what_is_left_out_is_named(tmp_path, make_images):
    for split in ("train", "test", "holdout", "extra"):
        make_images(tmp_path, files(f"{split}/one", 10) + files(f"{split}/two", 10))
    make_images(tmp_path, ["train/stray.png", "train/other.png"])
    dataset, splits = load(tmp_path)
    assert sum(map(len, splits.values())) == 40
    assert any("'extra', 'holdout'" in note for note in dataset.notes)
    assert any(note.startswith("2 ") and "'train'" in note for note in dataset.notes)


def test_classes_that_share_their_folders_are_noted(tmp_path, make_images):
    for site, more in (("north", "covid"), ("south", "flu")):
        make_images(tmp_path, [n for c in ("one", "two", more) for n in files(f"{site}/{c}", 4)])
    dataset, _ = load(tmp_path)
    assert dataset.class_names == ("north", "south")
    assert [note for note in dataset.notes if "'one', 'two'" in note and "split" in note]


@pytest.mark.parametrize(
    "folders",
    [
        [f"fold{i}" for i in range(1, 6)],
        ["site A", "site B"],
        ["benign", "malignant"],
    ],
)
def test_folders_of_the_same_folders_are_no_classes(tmp_path, make_images, folders):
    for folder in folders:
        make_images(tmp_path, files(f"{folder}/one", 4) + files(f"{folder}/two", 4))
    with pytest.raises(DataError, match=rf"'{folders[0]}', .*folds") as caught:
        load(tmp_path)
    assert "'one', 'two'" in str(caught.value)
    # The way out that it names.
    (tmp_path / "card.yaml").write_text(f"class_names: {{'{folders[0]}': a class}}")
    assert "a class" in load(tmp_path)[0].class_names


def test_folds_of_which_one_lacks_a_class(tmp_path, make_images):
    for fold in ("Fold_1", "Fold_2"):
        make_images(tmp_path, files(f"{fold}/one", 4) + files(f"{fold}/two", 4))
    make_images(tmp_path, files("Fold_3/one", 4) + files("Fold_3/three", 4))
    layout_error(tmp_path, "splits or folds")


def test_patients_below_classes_are_no_splits(tmp_path, make_images):
    make_images(tmp_path, files("one/p1", 4) + files("one/p2", 4) + files("two/p2", 4))
    assert load(tmp_path)[0].class_names == ("one", "two")


def test_a_class_called_test(tmp_path, make_images):
    make_images(tmp_path, files("control", 5) + files("test", 5) + files("placebo", 5))
    with pytest.raises(DataError, match=r"'test' .*'control', 'placebo' .*'train'"):
        load(tmp_path)
    (tmp_path / "card.yaml").write_text("class_names: {test: treated}")
    assert load(tmp_path)[0].class_names == ("control", "placebo", "treated")
    # Below splits it is a class like any other.
    for split in ("train", "val", "test"):
        make_images(tmp_path / "x", files(f"{split}/control", 2) + files(f"{split}/test", 2))
    assert load(tmp_path / "x")[0].class_names == ("control", "test")


def test_one_class_in_two_forms_of_unicode(tmp_path, make_images):
    for split, name in (("train", "caf\u00e9"), ("val", "cafe\u0301"), ("test", "caf\u00e9")):
        make_images(tmp_path, files(f"{split}/{name}", 2) + files(f"{split}/tea", 2))
    assert load(tmp_path)[0].class_names == ("caf\u00e9", "tea")
    make_images(tmp_path, files("train/te\u200ba", 2))
    layout_error(tmp_path, r"'te\\u200ba' and 'tea'|'tea' and 'te\\u200ba'")


@pytest.mark.parametrize("place", ["one/caf\udce9.png", "caf\udce9/1.png"])
def test_names_that_are_not_utf8(tmp_path, make_images, place):
    make_images(tmp_path, files("one", 3) + files("two", 3))
    try:
        make_images(tmp_path, [place])
    except OSError:
        pytest.skip("the file system takes UTF-8 alone")
    layout_error(tmp_path, r"holds b'caf\\xe9(\.png)?', a name that is not UTF-8; rename")


def test_class_names_that_would_look_alike(tmp_path, make_images):
    make_images(tmp_path, files("blue nevus", 3) + files("Blue_nevus", 3))
    layout_error(tmp_path, "'Blue_nevus' and 'blue nevus' would both be shown as 'blue nevus'")


def test_links_stay_inside(tmp_path, make_images):
    make_images(tmp_path / "data", files("one", 3) + files("two", 3))
    make_images(tmp_path, ["secret.png"])
    inner = tmp_path / "data/two/again.png"
    inner.symlink_to("0.png")
    assert sum(len(s) for s in load(tmp_path / "data")[1].values()) == 7
    (tmp_path / "data/one/loop").symlink_to("..", target_is_directory=True)
    (tmp_path / "data/one/loop").unlink()
    inner.unlink()
    inner.symlink_to(tmp_path / "secret.png")
    layout_error(tmp_path / "data", r"again\.png' is a link to '.*secret\.png', outside of")
    inner.unlink()
    (tmp_path / "data/three").symlink_to(tmp_path, target_is_directory=True)
    layout_error(tmp_path / "data", r"three' is a link to .* outside of")


def test_a_link_in_a_circle_ends(tmp_path, make_images):
    make_images(tmp_path, files("one", 3) + files("two", 3))
    (tmp_path / "one/self").symlink_to(tmp_path / "one", target_is_directory=True)
    assert sum(len(s) for s in load(tmp_path)[1].values()) == 6


def test_relative_to_the_data_folder(tmp_path, make_images, monkeypatch):
    make_images(tmp_path / "root/skin", files("one", 3) + files("two", 3))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    dataset = FolderDataset("skin/")
    assert dataset.name == "skin"
    assert len(dataset.load(tmp_path / "root")["train"]) == 2


def test_files_of_other_kinds_and_partners_of_images(tmp_path):
    def save(name: str, n: int) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        form = {
            "jfif": "JPEG",
            "jpg": "JPEG",
            "jp2": "JPEG2000",
            "pgm": "PPM",
            "bmp": "BMP",
            "png": "PNG",
        }
        mode = "L" if path.suffix == ".pgm" else "RGB"
        Image.new("RGB", (8, 8), (n, 2 * n, 90)).convert(mode).save(
            path, form.get(path.suffix[1:].lower(), path.suffix[1:].upper())
        )

    names = ["train/a/1.jfif", "train/a/2.gif", "train/a/3.jp2", "train/a/4.PGM", "train/b/1.webp",
             "train/b/2.png", "val/a/1.png", "val/b/1.png", "test/a/1.tiff", "test/b/1.bmp",
             "test/b/scan (1).png"]  # fmt: skip
    left = ["train/b/2_mask.png", "test/b/scan (1)_mask_1.png", "test/b/masks/1.png"]
    for n, name in enumerate((*names, *left)):
        save(name, n)
    for name in ("train/a/x.nii", "train/a/y.NII", "test/b/z.heic", "test/b/README"):
        (tmp_path / name).write_bytes(b"other")
    for name in ("train/a/@eaDir/1.jfif/SYNOPHOTO_THUMB_M.jpg", "train/a/SYNOPHOTO_THUMB_M.jpg",
                 "train/a/.thumbnails/1.png", "train/b/#recycle/9.png"):  # fmt: skip
        save(name, 77)
    for name in ("train/a/Thumbs.db", "train/b/desktop.ini", "train/b/1.png:Zone.Identifier"):
        (tmp_path / name).write_bytes(b"litter")
    dataset, splits = load(tmp_path)
    assert sorted(i for split in splits.values() for i in split.ids) == sorted(names)
    for split in splits.values():
        for i in range(len(split)):
            assert split.open(i).size == (8, 8)
    others, partners = dataset.notes
    assert "4 files" in others
    assert all(part in others for part in ("2 .nii", "1 .heic", "1 without"))
    assert "3 files" in partners
    assert "'train/b/2_mask.png'" in partners


@pytest.mark.parametrize(
    ("names", "partners"),
    [
        (["1.png", "1_mask.png", "1_mask_2.png", "Mask_1.png", "1.png.mask.png"], 4),
        (["ISIC_1.jpg", "ISIC_1_segmentation.png", "ISIC_1_superpixels.png"], 2),
        (["images/1.png", "masks/1.png", "masks/1_left.png"], 2),
        (["1.png", "1_thumb.jpg", "1-overlay.jpg", "1 annotated.png"], 3),
        (["1_mask.png", "2_mask.png"], 0),
        (["1.png", "1_2.png", "11.png", "unmasked.png", "1_label_a.png"], 0),
    ],
)
def test_partners_are_known_by_the_names_of_images_beside_them(tmp_path, names, partners):
    files = [tmp_path / name for name in names]
    own, found = without_partners(files, tmp_path)
    assert len(found) == partners
    assert own == [file for file in files if file not in found]


def test_images_that_differ_in_the_ending_alone_are_both_read(tmp_path, make_images):
    make_images(tmp_path, files("train/a", 2) + files("train/b", 2) + files("test/a", 2))
    make_images(tmp_path, ["train/a/0.jpg", "val/a/0.png", "val/b/0.png", "test/b/0.png"])
    dataset, splits = load(tmp_path)
    assert splits["train"].counts(2) == [3, 2]
    assert any("1 pair" in note and "0.jpg" in note for note in dataset.notes)
