"""Drawing a train/val/test split where the data has none. No global random state.

An image's place depends on its id, its class's other ids and the seed alone: not on the
platform, the order of the files, or numpy's version. The ids are digests of the images' content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from vipbench.api.dataset import SPLITS, DataError

Indices = npt.NDArray[np.int64]


def draw_split(
    labels: Sequence[int],
    ids: Sequence[str],
    class_names: Sequence[str],
    ratios: tuple[float, float, float] = (6, 1, 3),
    seed: int = 1,
    groups: Sequence[str] | None = None,
) -> dict[str, Indices]:
    """A split stratified by class, and disjoint in `groups` (patients, lesions) where given.

    ratios: of train, val, test; the sum does not matter, and a ratio of 0 leaves a split empty.
    Returns split -> positions, ascending. Without groups each class is cut exactly, to the
    rounding; with groups as nearly as whole groups allow. Every split with a ratio holds every
    class, but for val, where a class may be missing for lack of images.
    Raises DataError naming a class with too few images or groups.
    """
    if len(ratios) != 3 or min(ratios) < 0 or ratios[0] <= 0:
        raise DataError(f"ratios are {ratios}; expected three numbers of 0 or more, train above 0")
    share = np.array(ratios, dtype=np.float64) / sum(ratios)
    label = np.asarray(labels, dtype=np.int64)
    if groups is None:
        place = _by_image(label, ids, class_names, share, seed)
    else:
        place = _by_group(label, groups, class_names, share, seed)
        _check(place, label, class_names, share, "groups")
    return {name: np.flatnonzero(place == s) for s, name in enumerate(SPLITS)}


def draw_folds(
    labels: Sequence[int],
    groups: Sequence[str],
    class_names: Sequence[str],
    count: int,
    seed: int = 1,
) -> dict[str, Indices]:
    """`count` folds of nearly equal size, stratified by class and disjoint in `groups`; a single
    image may be a group.

    Returns "fold-1", "fold-2", … -> positions, ascending. Raises DataError for a class that cannot
    be in two folds, so that one has no image of it to train on, and for too few groups.
    """
    n = len(set(groups))
    if not 2 <= count <= n:
        raise DataError(f"{count} folds were requested; expected 2 to {n}, the number of groups")
    label = np.asarray(labels, dtype=np.int64)
    share = np.full(count, 1 / count)
    place = _by_group(label, groups, class_names, share, seed)
    for c, name in enumerate(class_names):
        if len(set(place[label == c].tolist())) < 2:
            raise DataError(
                f"class '{name}' has too few groups (patients, or images that differ) to be in two "
                "folds; add more"
            )
    return {f"fold-{k + 1}": np.flatnonzero(place == k) for k in range(count)}


def groups_by_content(groups: Sequence[str], digests: Sequence[str]) -> list[str]:
    """For each image the smallest digest in its group, which identifies the group."""
    smallest: dict[str, str] = {}
    for group, digest in zip(groups, digests, strict=True):
        smallest[group] = min(digest, smallest.get(group, digest))
    return [smallest[group] for group in groups]


def _by_image(
    labels: Indices,
    ids: Sequence[str],
    class_names: Sequence[str],
    share: npt.NDArray[np.float64],
    seed: int,
) -> Indices:
    place = np.zeros(len(labels), dtype=np.int64)
    for c, name in enumerate(class_names):
        members = sorted(np.flatnonzero(labels == c).tolist(), key=lambda i: _rank(ids[i], seed))
        sizes = _sizes(len(members), share, name)
        bounds = np.concatenate([[0], np.cumsum(sizes)]).tolist()
        for s, (start, end) in enumerate(pairwise(bounds)):
            place[members[start:end]] = s
    return place


def _sizes(n: int, share: npt.NDArray[np.float64], name: str) -> Indices:
    """How many of a class's n images each split gets."""
    needed = int((share[[0, 2]] > 0).sum())
    if n < needed:
        raise DataError(
            f"class '{name}' has {n} image{'' if n == 1 else 's'}; "
            f"{needed} or more are needed to split it"
        )
    ends = np.floor(np.cumsum(share) * n + 0.5).astype(np.int64)
    sizes = np.diff(np.concatenate([[0], ends]))
    for s in (0, 2, 1):  # train and test come first: val may stay empty in a tiny class
        if share[s] > 0 and sizes[s] == 0:
            donor = int(np.argmax(sizes))
            if sizes[donor] > 1:
                sizes[donor] -= 1
                sizes[s] += 1
    return sizes


def _by_group(
    labels: Indices,
    groups: Sequence[str],
    class_names: Sequence[str],
    share: npt.NDArray[np.float64],
    seed: int,
) -> Indices:
    n_classes = len(class_names)
    names = sorted(set(groups))
    index = {name: g for g, name in enumerate(names)}
    member = np.array([index[g] for g in groups], dtype=np.int64)
    counts = np.zeros((len(names), n_classes), dtype=np.float64)
    np.add.at(counts, (member, labels), 1)
    counts /= np.maximum(counts.sum(0), 1)  # a rare class weighs as much as a common one
    lack = np.repeat(share[:, None], n_classes, axis=1)  # (3, C), what each split still lacks
    chosen = np.zeros(len(names), dtype=np.int64)
    # Large groups first: the small ones then even out what these leave.
    order = sorted(range(len(names)), key=lambda g: (-counts[g].sum(), _rank(names[g], seed)))
    for g in order:
        room = np.where(share > 0, lack @ counts[g], -np.inf)
        chosen[g] = int(np.argmax(room))
        lack[chosen[g]] -= counts[g]
    return chosen[member]


def _check(
    place: Indices,
    labels: Indices,
    class_names: Sequence[str],
    share: npt.NDArray[np.float64],
    what: str,
) -> None:
    for s in (0, 2):
        for c, name in enumerate(class_names):
            if share[s] > 0 and not ((place == s) & (labels == c)).any():
                raise DataError(
                    f"class '{name}' has too few {what} to be in both train and test; "
                    "add more, or split by image"
                )


def _rank(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"vipbench-split/{seed}/{name}".encode()).digest()
