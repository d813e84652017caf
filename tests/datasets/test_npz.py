from __future__ import annotations

import pickle
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vipbench.api import DataError
from vipbench.datasets.npz import NpzDataset
from vipbench.datasets.reading import medmnist_files as _medmnist
from vipbench.datasets.reading import npz_file as _npzfile
from vipbench.errors import UsageError
from vipbench.symptoms import shipped_symptoms

NAMES = np.array(["benign", "malignant_tumour"])


def load(path: Path):
    dataset = NpzDataset(str(path))
    return dataset, dataset.load(None)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("fortran", [False, True])
def test_images_and_labels_come_back(make_npz, compressed, fortran):
    images = np.random.default_rng(1).integers(0, 256, (12, 5, 4, 3), dtype=np.uint8)
    stored = np.asfortranarray(images) if fortran else images
    path = make_npz(compressed=compressed, train_images=stored, class_names=NAMES)
    dataset, splits = load(path)
    assert dataset.name == "toy"
    assert dataset.class_names == ("benign", "malignant tumour")
    train = splits["train"]
    assert train.labels.tolist() == [0, 1] * 6
    assert train.labels.dtype == np.int64
    assert train.ids[3] == "train/3"
    for i in range(12):
        assert np.array_equal(train.images[i], images[i])
    assert np.array_equal(train.images[1:4][2], images[3])
    assert train.images[-1].tolist() == images[-1].tolist()
    assert train.open(0).size == (4, 5)
    again = pickle.loads(pickle.dumps(train))
    assert np.array_equal(again.images[5], images[5])
    with pytest.raises(IndexError):
        train.images[12]


def test_large_compressed_arrays_go_through_a_temporary_file(make_npz, monkeypatch):
    path = make_npz(compressed=True, class_names=NAMES)
    _, plain = load(path)
    monkeypatch.setattr(_npzfile, "IN_MEMORY_BYTES", 10)
    dataset, unpacked = load(path)
    assert isinstance(unpacked["train"].images._rows, np.memmap)
    assert np.array_equal(unpacked["train"].images[7], plain["train"].images[7])
    assert dataset.fingerprint(unpacked) == dataset.fingerprint(plain)


def test_labels_of_one_dimension_and_other_integers(make_npz):
    labels = (np.arange(12) % 2).astype(np.int32)
    _, splits = load(make_npz(train_labels=labels, class_names=NAMES))
    assert splits["train"].labels.tolist() == labels.tolist()


def test_uncompressed_files_are_not_read_into_memory(tmp_path):
    path = tmp_path / "large.npz"
    n = 4000
    images = np.zeros((n, 160, 160), np.uint8)  # 100 MB
    labels = np.arange(n) % 2
    rest = {f"{s}_images": images[:2] for s in ("val", "test")}
    rest |= {f"{s}_labels": labels[:2] for s in ("val", "test")}
    np.savez(path, train_images=images, train_labels=labels, class_names=NAMES, **rest)
    program = """
import resource, sys
from vipbench.datasets.npz import NpzDataset
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
train = NpzDataset(sys.argv[1]).load(None)["train"]
assert train.open(3999).size == (160, 160)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 30  # MB
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > 0


def test_paths_are_looked_for_here_and_in_the_data_folder(make_npz, tmp_path, monkeypatch):
    path = make_npz(class_names=NAMES)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert len(NpzDataset("toy.npz").load(tmp_path)["train"]) == 12
    assert len(NpzDataset("../toy.npz").load(None)["train"]) == 12
    assert len(NpzDataset(str(path)).load(elsewhere)["train"]) == 12
    with pytest.raises(DataError) as caught:
        NpzDataset("sub/gone.npz").load(tmp_path)
    for place in (elsewhere, tmp_path):
        assert f"'{place / 'sub/gone.npz'}'" in str(caught.value)
    with pytest.raises(DataError, match=r"--data-root"):
        NpzDataset("gone.npz").load(None)


@pytest.mark.parametrize(
    ("stem", "flag", "size"),
    [
        ("pneumoniamnist", "pneumoniamnist", None),
        ("pneumoniamnist28", "pneumoniamnist", 28),
        ("BloodMNIST_64", "bloodmnist", 64),
        ("organamnist-224", "organamnist", 224),
        ("octmnist_32", None, None),
        ("my_octmnist", None, None),
        ("organmnist3d", "organmnist3d", None),
    ],
)
def test_file_names_of_medmnist(stem, flag, size):
    assert _medmnist.recognise(stem) == (flag, size)


def test_a_medmnist_file_brings_names_texts_and_licence(make_npz):
    dataset, _ = load(make_npz("pneumoniamnist28"))
    assert dataset.class_names == ("normal", "pneumonia")
    assert dataset.templates == ("a chest X-ray of {}.",)
    assert dataset.licence == "CC BY 4.0"
    assert "Scientific Data" in dataset.citation
    assert set(dataset.symptoms) == {"normal", "pneumonia"}
    assert "12/4/6 images" in dataset.caption  # not the published set
    assert "4708/524/624" in dataset.caption


def test_facts_of_medmnist_are_whole():
    facts = _medmnist.MEDMNIST
    assert len(facts) == 11
    assert [len(f.class_names) for f in facts.values()] == [9, 7, 4, 2, 5, 2, 8, 8, 11, 11, 11]
    assert facts["dermamnist"].licence == "CC BY-NC 4.0"
    digests = [md5 for fact in facts.values() for md5 in fact.md5]
    assert len(set(digests)) == 44
    assert all(len(md5) == 32 for md5 in digests)
    assert all(f.template.count("{}") == 1 for f in facts.values())
    for fact in facts.values():
        symptoms = shipped_symptoms(fact.flag, fact.class_names)
        assert symptoms is not None
        assert [len(symptoms[name]) for name in fact.class_names] == [4] * len(fact.class_names)


@pytest.mark.parametrize(
    ("name", "message"),
    [("chestmnist", "is multi-label"), ("organmnist3d_64", "volumes")],
)
def test_sets_that_cannot_be_read_are_refused_at_once(name, message):
    with pytest.raises(UsageError, match=message):
        NpzDataset(f"data/{name}.npz")


def test_no_path():
    for argument in (None, ""):
        with pytest.raises(UsageError, match="npz:PATH"):
            NpzDataset(argument)


def test_a_card_names_the_classes(make_npz, tmp_path):
    path = make_npz()
    with pytest.raises(DataError, match=r"'toy\.yaml' .*class_names"):
        load(path)
    card = tmp_path / "toy.yaml"
    card.write_text(
        "class_names: [healthy, sick]\nmodality: X-ray\nlicence: mine\ncaption: Ours.\n"
    )
    dataset, _ = load(path)
    assert dataset.class_names == ("healthy", "sick")
    assert dataset.templates == ("a X-ray of {}.",)
    assert (dataset.licence, dataset.caption) == ("mine", "Ours.")
    card.write_text('{"class_names": ["healthy", "sick"], "sharing": "allowed"}')  # JSON is YAML
    assert load(path)[0].sharing == "allowed"
    card.write_text("class_names: {healthy: sick}")
    with pytest.raises(DataError, match=r"toy\.yaml': class_names .*list"):
        load(path)
    card.write_text("class_names: [healthy]")
    with pytest.raises(DataError, match=r"train_labels\[1\].* 1.* 0 "):
        load(path)


OBJECTS = np.array([["a", 1]] * 12, dtype=object)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": None}, r"'train_images'.*'train_labels'"),
        ({"test_labels": None, "val_images": None}, "'val_images', 'test_labels'"),
        ({"train_images": OBJECTS}, "'train_images' .*Python"),
        ({"train_labels": OBJECTS}, "'train_labels' .*Python"),
        ({"class_names": np.array(["a", "b"], object)}, "'class_names' .*Python"),
        ({"train_images": np.zeros((12, 8, 8))}, r"train_images .*\(12, 8, 8\) .*float64"),
        (
            {"train_images": np.zeros((12, 64), np.uint8)},
            r"\(12, 64\) .*\(N,H,W\)",
        ),
        ({"train_images": np.zeros((12, 8, 8, 8), np.uint8)}, r"\(12, 8, 8, 8\) .*uint8"),
        ({"train_images": np.zeros((12, 0, 8), np.uint8)}, r"is \(12, 0, 8\)"),
        ({"train_images": np.zeros((11, 8, 8), np.uint8)}, r"train_labels .*\(12, 1\).* 11"),
        (
            {"train_labels": np.zeros((12, 14), np.uint8)},
            "train_labels .*14 .*multi-label",
        ),
        ({"train_labels": np.zeros((12, 1))}, "train_labels .*float64"),
        ({"train_labels": np.array([0, 1] * 5 + [2, 0])}, r"train_labels\[10\] is 2"),
        ({"val_labels": np.array([0, -1, 0, 1])}, r"val_labels\[1\] is -1"),
        ({"train_labels": np.ones(12, int)}, "'benign' .*train"),
        ({"test_labels": np.zeros(6, int)}, "'malignant tumour' .*test"),
        ({"class_names": np.array([1, 2])}, r"class_names .*int64"),
        ({"class_names": np.array(["a", "A"])}, "differ"),
    ],
)
def test_bad_arrays(make_npz, changes, message):
    path = make_npz(**{"class_names": NAMES, **changes})
    with pytest.raises(DataError, match=message) as caught:
        load(path)
    assert "toy.npz" in str(caught.value)


def test_val_may_lack_a_class(make_npz):
    _, splits = load(make_npz(class_names=NAMES, val_labels=np.zeros(4, int)))
    assert splits["val"].counts(2) == [4, 0]
    empty = np.zeros((0, 8, 8), np.uint8)
    _, splits = load(make_npz(class_names=NAMES, val_images=empty, val_labels=np.zeros(0, int)))
    assert len(splits["val"]) == 0


def test_files_that_are_no_npz(tmp_path, make_npz):
    text = tmp_path / "text.npz"
    text.write_text("hello")
    with pytest.raises(DataError, match=r"text\.npz'"):
        load(text)
    (tmp_path / "empty.npz").touch()
    with pytest.raises(DataError, match=r"empty\.npz'"):
        load(tmp_path / "empty.npz")
    with pytest.raises(DataError, match=r"folder:PATH"):
        load(tmp_path)
    whole = make_npz(class_names=NAMES)
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"cut\.npz'"):
        load(cut)


def test_damaged_arrays(tmp_path, make_npz):
    whole = make_npz(compressed=True, class_names=NAMES)
    with zipfile.ZipFile(whole) as archive:
        start = archive.getinfo("train_images.npy").header_offset
    data = bytearray(whole.read_bytes())
    for i in range(start + 400, start + 440):
        data[i] ^= 255
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(data)
    with pytest.raises(DataError, match=r"damaged\.npz': .*'train_images'.*damaged"):
        load(damaged)[1]["train"].images[0]

    lying = tmp_path / "lying.npz"
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(lying, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "train_images.npy":
                content = content.replace(b"(12, 8, 8)", b"(99, 8, 8)")
            new.writestr(name, content)
    with pytest.raises(DataError, match=r"'train_images'.*damaged.*\(99, 8, 8\)"):
        load(lying)


def test_fingerprint_follows_content_not_names(make_npz, tmp_path):
    one, splits = load(make_npz("one", class_names=NAMES))
    two, others = load(make_npz("two", compressed=True, class_names=NAMES))
    key = one.fingerprint(splits)
    assert two.fingerprint(others) == key
    images = np.array([splits["train"].images[i] for i in range(12)])
    images[3, 0, 0] ^= 1
    three, changed = load(make_npz("three", train_images=images, class_names=NAMES))
    assert three.fingerprint(changed) != key


def test_the_standing_real_input(shared):
    dataset, splits = load(shared / "data/pneumoniamnist28.npz")
    assert dataset.class_names == ("normal", "pneumonia")
    assert {k: v.counts(2) for k, v in splits.items()} == {
        "train": [1214, 1214],
        "val": [135, 135],
        "test": [234, 234],
    }
    assert splits["test"].open(467).size == (28, 28)
