"""Datasets of the Hugging Face library: folders, and its cache without a connection."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vipbench.api import DataError
from vipbench.datasets.hf import HuggingFaceDataset
from vipbench.results.sharing.privacy import public_source

library = pytest.importorskip("datasets")
REVISION = "0123456789abcdef0123456789abcdef01234567"


def picture(i: int) -> Image.Image:
    return Image.fromarray(np.full((4, 4, 3), i, dtype=np.uint8))


def table(numbers: range, label: str = "dx") -> Any:
    features = library.Features(
        {
            "scan": library.Image(),
            label: library.ClassLabel(names=["nevus", "mel_anoma"]),
            "patient": library.Value("string"),
        }
    )
    values = {
        "scan": [picture(i) for i in numbers],
        label: [i % 2 for i in numbers],
        "patient": [f"p{i // 2}" for i in numbers],
    }
    return library.Dataset.from_dict(values, features=features)


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    parts = {"train": table(range(20)), "validation": table(range(20, 26))}
    parts["test"] = table(range(26, 40))
    library.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def test_a_saved_dataset_with_the_splits_and_classes_that_it_names(saved: Path) -> None:
    dataset = HuggingFaceDataset(str(saved))
    splits = dataset.load(None)
    assert dataset.class_names == ("nevus", "mel anoma")
    assert [len(splits[name]) for name in ("train", "val", "test")] == [20, 6, 14]
    assert splits["test"].labels.tolist() == [i % 2 for i in range(26, 40)]
    assert splits["test"].open(3).tobytes() == picture(29).tobytes()
    assert splits["train"].groups is None
    before = dataset.fingerprint(splits)
    card = "columns: {group: patient}\nclass_names: {nevus: mole}\ntemplates: ['a scan of {}.']\n"
    (saved / "card.yaml").write_text(card)
    grouped = HuggingFaceDataset(str(saved))
    assert grouped.load(None)["test"].groups[0] == "p13"
    assert grouped.class_names == ("mole", "mel anoma")
    moved = Path(shutil.move(saved, saved.parent / "moved"))
    (moved / "card.yaml").unlink()
    other = HuggingFaceDataset(str(moved))
    assert other.fingerprint(other.load(None)) == before


def test_a_table_without_splits_and_one_without_labels(saved: Path, tmp_path: Path) -> None:
    table(range(40)).save_to_disk(str(tmp_path / "one"))
    dataset = HuggingFaceDataset("one")
    splits = dataset.load(tmp_path)
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 24,
        "val": 4,
        "test": 12,
    }
    assert "60/10/30" in dataset.caption
    table(range(40)).remove_columns("dx").save_to_disk(str(tmp_path / "bare"))
    with pytest.raises(DataError, match=r"ClassLabel .*'scan'.*card\.yaml"):
        HuggingFaceDataset(str(tmp_path / "bare")).load(None)
    with pytest.raises(DataError, match="'gone'"):
        HuggingFaceDataset("gone").load(None)


def test_class_folders_as_the_library_reads_them(saved: Path, tmp_path: Path) -> None:
    for i in range(40):
        place = tmp_path / "tree" / ("train" if i < 24 else "test") / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        picture(i).save(place / f"{i}.png")
    splits = HuggingFaceDataset(str(tmp_path / "tree")).load(None)
    assert (len(splits["train"]) + len(splits["val"]), len(splits["test"])) == (24, 16)


def test_a_dataset_of_the_hub_from_the_cache(saved: Path, tmp_path: Path) -> None:
    """A cache as `load_dataset` leaves it, read without a connection."""
    missing = HuggingFaceDataset("ward/skin-scans")
    with pytest.raises(DataError, match=r"'ward/skin-scans' .*`vipbench fetch"):
        missing.load(None)
    place = tmp_path / "cache/ward___skin-scans/default/0.0.0" / REVISION
    place.mkdir(parents=True)
    infos = {}
    for name in ("train", "validation", "test"):
        part = library.load_from_disk(str(saved / name))
        part.save_to_disk(str(tmp_path / "part"))
        [arrow] = (tmp_path / "part").glob("*.arrow")
        shutil.move(arrow, place / f"skin-scans-{name}.arrow")
        infos[name] = {"name": name, "num_examples": len(part), "dataset_name": "skin-scans"}
        infos[name]["num_bytes"] = 1
    info = library.load_from_disk(str(saved / "train")).info
    info.splits = library.SplitDict.from_split_dict(list(infos.values()))
    info.builder_name, info.dataset_name, info.config_name = "parquet", "skin-scans", "default"
    info.version = "0.0.0"
    info.write_to_directory(str(place))
    assert json.loads((place / "dataset_info.json").read_text())["splits"]
    dataset = HuggingFaceDataset("ward/skin-scans")
    splits = dataset.load(None)
    assert [len(splits[name]) for name in ("train", "val", "test")] == [20, 6, 14]
    assert dataset.name == "skin-scans"
    assert dataset.pinned == REVISION
    assert dataset.fingerprint(splits) != HuggingFaceDataset(str(saved)).fingerprint(splits)
    assert dataset.files(None)[0].find() == place
    pinned = HuggingFaceDataset(f"ward/skin-scans@{REVISION[:8]}")
    assert len(pinned.load(None)["test"]) == 14
    with pytest.raises(DataError, match=rf"'feed' .*'{REVISION}'.*`vipbench fetch"):
        HuggingFaceDataset("ward/skin-scans@feed").load(None)
    # A later revision in the cache; the earlier one is still read.
    shutil.copytree(place, place.with_name("f" * 40))
    again = HuggingFaceDataset(f"ward/skin-scans@{REVISION}")
    assert len(again.load(None)["test"]) == 14
    assert again.pinned == REVISION
    assert public_source("hf:ward/skin-scans@main", None) == "hf:ward/skin-scans@main"
    assert public_source(f"hf:{saved}", None) == "hf:PATH"
