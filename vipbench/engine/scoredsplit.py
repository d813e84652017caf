"""Runs that are scored on validation images, so that settings can be chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from vipbench.api.dataset import DataError, Split
from vipbench.engine.sampling import nested_order
from vipbench.images import ImageLike
from vipbench.spec import RunSpec


@dataclass(frozen=True)
class _Some(Sequence[ImageLike]):
    """Some images of a split, opened when asked for."""

    images: Sequence[ImageLike]
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> ImageLike: ...
    @overload
    def __getitem__(self, index: slice) -> list[ImageLike]: ...
    def __getitem__(self, index: int | slice) -> ImageLike | list[ImageLike]:
        if isinstance(index, slice):
            return [self.images[row] for row in self.rows[index]]
        return self.images[self.rows[index]]


def on_validation(
    splits: Mapping[str, Split], spec: RunSpec, name: str, class_names: Sequence[str]
) -> dict[str, Split]:
    """The splits with validation images in the test split's place, as `spec.score_on` says: the
    whole split, or k or min(k,4) of each class, the same for every method and seed.

    Nothing of the test split is read, and nothing that is drawn from here on depends on it.
    Raises DataError where a class has no validation images.
    """
    val = splits["val"]
    for label, count in enumerate(val.counts(len(class_names))):
        if count == 0:
            raise DataError(
                f"class '{class_names[label]}' has no validation images, and the run is scored on "
                "them"
            )
    if spec.score_on != "val:full" and spec.shots != ("full",):
        (k,) = spec.shots
        assert isinstance(k, int)
        most = k if spec.score_on == "val:k" else min(k, 4)
    else:
        most = 4 if spec.score_on == "val:min(k,4)" else len(val)
    rows: list[int] = []
    for label in range(len(class_names)):
        rows += nested_order(val, label, ("scored", name, label))[:most].tolist()
    return {"train": splits["train"], "val": val, "test": subset(val, sorted(rows))}


def subset(split: Split, rows: Sequence[int]) -> Split:
    """Some images of a split, in the order of `rows`."""
    if len(rows) == len(split):
        return split
    labels: npt.NDArray[np.int64] = split.labels[list(rows)]
    groups = None if split.groups is None else tuple(split.groups[i] for i in rows)
    ids = tuple(split.ids[i] for i in rows)
    return Split(_Some(split.images, tuple(rows)), labels, ids, groups)
