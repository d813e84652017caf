from __future__ import annotations

import re

import numpy as np

from vipbench.api import Split
from vipbench.engine.planning.leaks import equal_images, group_overlap


def split(name: str, groups: list[str] | None, n: int = 3) -> Split:
    n = len(groups) if groups is not None else n
    images = [np.zeros((1, 1), np.uint8)] * n
    ids = tuple(f"{name}/{i}" for i in range(n))
    return Split(images, np.zeros(n, np.int64), ids, None if groups is None else tuple(groups))


def test_overlap_names_splits_groups_and_images():
    train = split("train", ["p", "p", "q", "r"])
    val = split("val", ["r", "s"])
    test = split("test", ["t", "q", "r"])
    found = group_overlap({"train": train, "val": val, "test": test})
    assert found is not None
    assert re.search(r"train and val .*1 group.*'r' \('train/3' and 'val/0'\)", found)
    assert re.search(r"train and test .*2 groups.*'q' \('train/2' and 'test/1'\)", found)
    assert re.search("val and test .*1 group", found)


def test_no_overlap():
    splits = {
        "train": split("train", ["p", "p"]),
        "val": split("val", []),
        "test": split("t", ["q"]),
    }
    assert group_overlap(splits) is None
    without = {name: split(name, None) for name in ("train", "val", "test")}
    assert group_overlap(without) is None
    assert group_overlap({**without, "train": split("train", ["p"])}) is None


def greys(name: str, levels: list[int], labels: list[int]) -> Split:
    images = [np.full((2, 2), level, np.uint8) for level in levels]
    ids = tuple(f"{name}/{i}" for i in range(len(levels)))
    return Split(images, np.array(labels, np.int64), ids)


def test_equal_images_are_counted_by_split_and_class():
    splits = {
        "train": greys("train", [1, 2, 3, 3, 4, 4], [0, 0, 0, 0, 1, 0]),
        "val": greys("val", [9], [0]),
        "test": greys("test", [1, 2, 9, 7], [0, 1, 0, 0]),
    }
    found = equal_images(splits, ["benign", "malignant"])
    assert found is not None
    assert re.search("2 images .*train and test, 1 ", found.sentence)
    assert re.search("1 image .*val and test", found.sentence)
    assert re.search("2 images .*once in train, 1 ", found.sentence)
    # Of the examples, one under two classes; ids stand in it alone.
    assert re.search(r"'train/1' \(benign\).*'test/1' \(malignant\)", found.example)
    assert "train/" not in found.sentence
    alone = {name: greys(name, [i], [0]) for i, name in enumerate(("train", "val", "test"))}
    assert equal_images(alone, ["benign", "malignant"]) is None
