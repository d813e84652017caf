"""Data in folds: each is tested once, with what is trained on the others.

The images are one split, so that each is encoded once. A fold is its own images as the test split,
a tenth of the others, drawn by content and in whole groups, as the validation split, and the rest
to train on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vipbench.api.dataset import DataError, Split
from vipbench.api.draw_split import draw_split, groups_by_content

_FOLD = re.compile(r"fold-\d+")
SEED = 1


@dataclass(frozen=True)
class Fold:
    """name: `fold-2`. count: how many folds there are. rows: split -> places in the whole."""

    name: str
    count: int
    rows: Mapping[str, Sequence[int]]


def in_folds(splits: Mapping[str, Split]) -> bool:
    """Whether a dataset gave folds in the place of splits."""
    return bool(splits) and all(_FOLD.fullmatch(name) for name in splits)


def join(splits: Mapping[str, Split]) -> Split:
    """All folds as one split, one after the other."""
    parts = list(splits.values())
    grouped = all(part.groups is not None for part in parts)
    return Split(
        [image for part in parts for image in part.images],
        np.concatenate([part.labels for part in parts]),
        tuple(name for part in parts for name in part.ids),
        tuple(g for part in parts for g in part.groups or ()) if grouped else None,
        tuple(digest for part in parts for digest in part.digests),
        parts[0].pixels,
    )


def divide(splits: Mapping[str, Split], whole: Split, class_names: Sequence[str]) -> list[Fold]:
    """The folds of `whole`, as `join` gave it. Raises DataError where one has no image of a class
    to train on."""
    ends = np.cumsum([len(split) for split in splits.values()]).tolist()
    groups = None if whole.groups is None else groups_by_content(whole.groups, whole.digests)
    found = []
    for name, end in zip(splits, ends, strict=True):
        test = range(end - len(splits[name]), end)
        rest = [i for i in range(len(whole)) if i not in test]
        labels = [int(whole.labels[i]) for i in rest]
        for label, class_name in enumerate(class_names):
            if label not in labels:
                raise DataError(
                    f"all images of class '{class_name}' are in {name}; expected some in another "
                    "fold, to train on"
                )
        drawn = draw_split(
            labels,
            [whole.digests[i] for i in rest],
            class_names,
            (9, 1, 0),
            SEED,
            None if groups is None else [groups[i] for i in rest],
        )
        rows: dict[str, Sequence[int]] = {s: [rest[i] for i in drawn[s]] for s in ("train", "val")}
        found.append(Fold(name, len(splits), {**rows, "test": list(test)}))
    return found


def caption(count: int, grouped: bool) -> str:
    """A sentence for tables."""
    how = "in whole groups" if grouped else "stratified"
    return (
        f"{count} folds, each tested once; a tenth of the other images, {how}, is the validation "
        f"split (seed {SEED})."
    )
