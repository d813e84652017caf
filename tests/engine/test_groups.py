from __future__ import annotations

import numpy as np

from vipbench.api import Split
from vipbench.engine.planning.leaks import group_overlap


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
    assert "train and val share 1 group, for instance 'r' ('train/3' and 'val/0')" in found
    assert "train and test share 2 groups, for instance 'q' ('train/2' and 'test/1')" in found
    assert "val and test share 1 group" in found


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
