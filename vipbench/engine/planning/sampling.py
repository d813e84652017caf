"""Which training and validation images a cell sees, balanced or by natural prevalence.

Two samplers. `nested`: which images of a class are drawn depends on that class's images in the
split, shots and seed alone, and the k-shot set is contained in every larger one of the same seed.
`coop`: the very images that programs of the CoOp family draw, which depend on the order of rows.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from vipbench.revisions import SAMPLER_REVISION

if TYPE_CHECKING:
    from vipbench.api.dataset import Split


Sampler: TypeAlias = Literal["nested", "coop"]

ShotsUnit: TypeAlias = Literal["image", "group"]

Validation: TypeAlias = Literal["none", "k", "min(k,4)", "full"]

Indices: TypeAlias = npt.NDArray[np.int64]

REVISION = SAMPLER_REVISION


class SamplingError(ValueError):
    """The asked-for support or validation set cannot be drawn; the message says why."""


@dataclass(frozen=True)
class SupportIndices:
    """Positions in the splits: train (N,); val (V,), or None where the policy uses none."""

    train: Indices
    val: Indices | None


def draw_support(
    train: Split,
    val: Split | None,
    n_classes: int,
    class_names: Sequence[str],
    shots: int | None,
    seed: int,
    sampler: Sampler,
    validation: Validation,
    shots_unit: ShotsUnit = "image",
) -> SupportIndices:
    """Draw the support set and the validation images of a cell.

    n_classes: C; class_names: C names, for messages. shots: images per class, None for the full
    training set.
    validation: `none`; `k` or `min(k,4)` images per class (a class that has fewer gives all it
        has); `full`, the whole split. With the full training set, `k` is the whole split and
        `min(k,4)` is 4 per class.
    shots_unit: what `shots` and the validation policy count: images, or groups (patients), of
        which all images of the class are taken; `group` needs the sampler `nested`.

    `nested` returns the images class by class, each class in the order of drawing; where there
    are groups, distinct groups are drawn first. `coop` returns them as drawn, of a whole split in
    stored order.
    Raises SamplingError naming the class, how many images it has and how many were asked for.
    """
    if len(class_names) != n_classes:
        raise SamplingError(f"{len(class_names)} class names were given for {n_classes} classes")
    if shots is not None and shots < 1:
        raise SamplingError(
            f"shots is {shots}; it must be 1 or more, or 'full' for the whole training set"
        )
    if sampler not in ("nested", "coop"):
        raise SamplingError(f"unknown sampler '{sampler}'; known: nested, coop")
    _check_unit(train, shots_unit, sampler)
    val_shots = images_per_class(validation, shots)
    _check_train(train, class_names, shots, shots_unit)
    if validation != "none":
        val = _check_val(val, class_names, validation)

    if sampler == "coop":
        # One generator for both draws, as the official programs go on with theirs.
        rng = random.Random(seed)
        train_indices = _all_rows(train) if shots is None else _coop(train, shots, rng)
        if validation == "none" or val is None:
            return SupportIndices(train_indices, None)
        val_indices = _all_rows(val) if val_shots is None else _coop(val, val_shots, rng)
        return SupportIndices(train_indices, val_indices)

    def nested(split: Split, purpose: str, k: int | None) -> Indices:
        chosen: list[int] = []
        for label in range(n_classes):
            groups = _ranked_groups(split, label, seed, purpose)
            if shots_unit == "group":
                chosen += [index for group in groups[:k] for index in group]
            else:
                chosen += _interleaved(groups)[:k]
        return np.array(chosen, dtype=np.int64)

    train_indices = nested(train, "support", shots)
    if validation == "none" or val is None:
        return SupportIndices(train_indices, None)
    return SupportIndices(train_indices, nested(val, "validation", val_shots))


def nested_order(split: Split, label: int, seed: int, purpose: str) -> Indices:
    """All images of class `label` in the order in which they are drawn, (n,).

    Every prefix is a support set, so that sets are nested. Where the split has groups, each round
    takes one more image of every group that has one.
    """
    return np.array(_interleaved(_ranked_groups(split, label, seed, purpose)), dtype=np.int64)


def seeded_order(split: Split, seed: int, purpose: str) -> list[int]:
    """All images of a split by rank, whatever their labels, groups and rows are."""
    ranks = [_rank(seed, purpose, digest) for digest in split.digests]
    return sorted(range(len(split)), key=lambda place: (ranks[place], split.ids[place]))


def _ranked_groups(split: Split, label: int, seed: int, purpose: str) -> list[list[int]]:
    """The images of a class by group, groups and images by rank; one each without groups."""
    members = np.flatnonzero(np.asarray(split.labels) == label).tolist()
    digests, groups = split.digests, split.groups
    return [
        [members[place] for place in group]
        for group in _ranking(
            tuple(digests[index] for index in members),
            tuple(split.ids[index] for index in members),
            None if groups is None else tuple(groups[index] for index in members),
            seed,
            purpose,
        )
    ]


# Every method and backbone of a run asks for the same ones.
@lru_cache(maxsize=1 << 14)
def _ranking(
    digests: tuple[str, ...],
    ids: tuple[str, ...],
    groups: tuple[str, ...] | None,
    seed: int,
    purpose: str,
) -> tuple[tuple[int, ...], ...]:
    """Places 0 to n-1 of a class's images by group, groups and images by rank.

    An image's rank is a hash of seed, purpose and its digest; a group's is that of its smallest
    digest, not of its first image, since groups with many images would come first more often than
    not. Of equal ranks the smaller id comes first.
    """
    ranks = [_rank(seed, purpose, digest) for digest in digests]
    order = sorted(range(len(digests)), key=lambda place: (ranks[place], ids[place]))
    if groups is None:
        return tuple((place,) for place in order)
    by_group: dict[str, list[int]] = {}
    for place in order:
        by_group.setdefault(groups[place], []).append(place)

    def rank_of(group: list[int]) -> tuple[str, str]:
        smallest = min(group, key=lambda place: (digests[place], ids[place]))
        return ranks[smallest], ids[smallest]

    return tuple(tuple(group) for group in sorted(by_group.values(), key=rank_of))


def _rank(seed: int, purpose: str, digest: str) -> str:
    return hashlib.sha256(f"{seed} {purpose} {digest}".encode()).hexdigest()


def _interleaved(groups: list[list[int]]) -> list[int]:
    """One image of every group, then one more of every group that has one, and so on."""
    longest = max(map(len, groups), default=0)
    return [group[r] for r in range(longest) for group in groups if r < len(group)]


def _coop(split: Split, shots: int, rng: random.Random) -> Indices:
    by_label: dict[int, list[int]] = {}
    for index, label in enumerate(np.asarray(split.labels).tolist()):
        by_label.setdefault(label, []).append(index)
    drawn: list[int] = []
    for members in by_label.values():
        # The official programs take a short class whole, without a draw.
        drawn += rng.sample(members, shots) if len(members) >= shots else members
    return np.array(drawn, dtype=np.int64)


def _all_rows(split: Split) -> Indices:
    return np.arange(len(split), dtype=np.int64)


def images_per_class(validation: Validation, shots: int | None) -> int | None:
    """Validation images per class; None: the whole split."""
    if validation in ("none", "full"):
        return None
    if validation == "k":
        return shots
    if validation == "min(k,4)":
        return 4 if shots is None else min(shots, 4)
    raise SamplingError(f"unknown validation policy '{validation}'; known: none, k, min(k,4), full")


def _check_unit(train: Split, unit: ShotsUnit, sampler: Sampler) -> None:
    if unit not in ("image", "group"):
        raise SamplingError(f"unknown shots unit '{unit}'; known: image, group")
    if unit == "group" and sampler != "nested":
        raise SamplingError("shots are counted in groups by the sampler 'nested' alone")
    if unit == "group" and train.groups is None:
        raise SamplingError("shots are counted in groups, and the dataset has none; use 'image'")


def _check_train(
    train: Split, class_names: Sequence[str], shots: int | None, unit: ShotsUnit
) -> None:
    counts = train.counts(len(class_names))
    what = "training image"
    if unit == "group" and train.groups is not None:
        pairs = set(zip(np.asarray(train.labels).tolist(), train.groups, strict=True))
        counts = [sum(label == c for label, _ in pairs) for c in range(len(class_names))]
        what = "training group"
    for name, count in zip(class_names, counts, strict=True):
        if shots is not None and count < shots:
            most = min(counts)
            raise SamplingError(
                f"class '{name}' has {count} {what}{'' if count == 1 else 's'}, but "
                f"{shots} shots were requested; "
                + (f"use at most {most}, or 'full'" if most else "every class needs images")
            )
        if count == 0:
            raise SamplingError(f"class '{name}' has no {what}s; every class needs at least one")


def _check_val(val: Split | None, class_names: Sequence[str], validation: Validation) -> Split:
    counts = [0] * len(class_names) if val is None else val.counts(len(class_names))
    for name, count in zip(class_names, counts, strict=True):
        if count == 0 or val is None:
            raise SamplingError(
                f"class '{name}' has no validation images, but the validation policy is "
                f"'{validation}'; add some, or use the policy 'none'"
            )
    assert val is not None  # there is at least one class, so the loop raised otherwise
    return val


def quotas(counts: Sequence[int], budget: int) -> list[int]:
    """How many of `budget` images each class gets, by its share of `counts`; never more than it
    has.

    Every class gets one image first; each further one goes to the class whose count, divided by
    twice its images so far plus one, is largest (Webster's method), the first of ties. A larger
    budget takes nothing away, so that the support sets of one seed are nested.
    Raises ValueError where the budget does not give every class one, or is more than there is.
    """
    if not len(counts) <= budget <= sum(counts) or min(counts) < 1:
        raise ValueError(f"{budget} images cannot be shared among classes of {list(counts)}")
    given = np.ones(len(counts), dtype=np.int64)
    have = np.asarray(counts, dtype=np.float64)
    for _ in range(budget - len(counts)):
        priority = np.where(given < have, have / (2 * given + 1), -1.0)
        given[int(priority.argmax())] += 1
    return [int(n) for n in given]


def draw_prevalent(
    train: Split,
    val: Split | None,
    class_names: Sequence[str],
    shots: int | None,
    seed: int,
    validation: Validation,
) -> SupportIndices:
    """Draw shots·C training images by the training split's class frequencies, and validation
    images in the same way, by the validation split's: as many as the policy allows, where there
    are so many. shots: None is the full training split. Arguments as for `draw_support`.

    Which images of a class come first is as in the balanced support set of that seed.
    Raises SamplingError naming the class, or how many images there are.
    """

    def draw(split: Split, purpose: str, k: int | None) -> Indices:
        counts = split.counts(len(class_names))
        if k is not None and k * len(class_names) < sum(counts):
            counts = quotas(counts, k * len(class_names))
        found: list[int] = []
        for label, n in enumerate(counts):
            found += nested_order(split, label, seed, purpose)[:n].tolist()
        return np.array(found, dtype=np.int64)

    _check(train, class_names, "training")
    if shots is not None and shots * len(class_names) > len(train):
        raise SamplingError(
            f"{shots} shots of {len(class_names)} classes are {shots * len(class_names)} images, "
            f"and the training split has {len(train)}; use at most "
            f"{len(train) // len(class_names)}, or 'full'"
        )
    chosen = draw(train, "support", shots)
    if validation == "none":
        return SupportIndices(chosen, None)
    if val is None:
        raise SamplingError("there are no validation images; use the policy 'none'")
    _check(val, class_names, "validation")
    return SupportIndices(chosen, draw(val, "validation", images_per_class(validation, shots)))


def _check(split: Split, class_names: Sequence[str], what: str) -> None:
    for name, count in zip(class_names, split.counts(len(class_names)), strict=True):
        if count == 0:
            raise SamplingError(
                f"class '{name}' has no {what} images; every class needs at least one"
            )
