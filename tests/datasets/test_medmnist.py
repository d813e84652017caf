from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vipbench.api import DataError
from vipbench.datasets.medmnist import MedMnistDataset
from vipbench.datasets.reading import medmnist_files as _medmnist
from vipbench.errors import UsageError


@pytest.fixture
def published(make_npz, tmp_path, monkeypatch):
    """Files that count as published, because the MD5s are set to theirs."""

    def make(folder: Path, size: int) -> Path:
        name = "bloodmnist" if size == 28 else f"bloodmnist_{size}"
        labels = {f"{s}_labels": np.arange(8).repeat(2)[:, None] for s in ("train", "val", "test")}
        images = {
            f"{s}_images": np.zeros((16, size, size, 3), np.uint8) for s in ("train", "val", "test")
        }
        path = make_npz(name, **labels, **images)
        folder.mkdir(parents=True, exist_ok=True)
        target = path.rename(folder / path.name)
        fact = _medmnist.MEDMNIST["bloodmnist"]
        md5 = list(fact.md5)
        digest = hashlib.md5(target.read_bytes(), usedforsecurity=False).hexdigest()
        md5[_medmnist.SIZES.index(size)] = digest
        monkeypatch.setitem(_medmnist.MEDMNIST, "bloodmnist", replace(fact, md5=tuple(md5)))
        return target

    return make


@pytest.mark.parametrize("size", [28, 64, 128, 224])
def test_sizes(published, tmp_path, size):
    published(tmp_path, size)
    dataset = MedMnistDataset("bloodmnist" if size == 28 else f"bloodmnist_{size}")
    splits = dataset.load(tmp_path)
    assert dataset.name == ("bloodmnist" if size == 28 else f"bloodmnist_{size}")
    assert splits["train"].counts(8) == [2] * 8
    assert splits["train"].open(0).size == (size, size)
    assert dataset.licence == "CC BY 4.0"


def test_places(published, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(DataError) as caught:
        MedMnistDataset("bloodmnist").load(tmp_path)
    for word in (
        "'bloodmnist.npz'",
        str(tmp_path / "medmnist"),
        ".medmnist",
        "zenodo",
    ):
        assert word in str(caught.value)
    for folder in (tmp_path / "home/.medmnist", tmp_path / "medmnist"):
        published(folder, 28)
        assert len(MedMnistDataset("bloodmnist").load(tmp_path)["train"]) == 16


def test_another_file_of_that_name_is_refused(published, tmp_path):
    path = published(tmp_path, 28)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DataError, match=r"MD5 .*npz:.*bloodmnist"):
        MedMnistDataset("bloodmnist").load(tmp_path)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (None, r"medmnist:FLAG.*pathmnist"),
        ("chestmnist_64", "chestmnist .*multi-label"),
        ("chest", "chestmnist .*multi-label"),
        ("pneumonia_64", "'pneumoniamnist_64'"),
        ("blodmnist", "'blodmnist'.*'bloodmnist'"),
        ("bloodmnist_32", "'bloodmnist_32'"),
    ],
)
def test_sets_that_are_not(argument, message):
    with pytest.raises(UsageError, match=message):
        MedMnistDataset(argument)
