"""Support sets whose classes are as frequent as in the training split. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vipbench.engine.sampling import (
    Indices,
    SamplingError,
    SupportIndices,
    Validation,
    images_per_class,
    nested_order,
)

if TYPE_CHECKING:
    from vipbench.api.dataset import Split


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
    dataset_key: str,
) -> SupportIndices:
    """Draw shots·C training images by the training split's class frequencies, and validation
    images in the same way, by the validation split's: as many as the policy allows, where there
    are so many. shots: None is the full training split. Arguments as for `draw_support`.

    Which images of a class come first is as in the balanced support set of that seed.
    Raises SamplingError naming the class, or how many images there are.
    """

    def draw(split: Split, purpose: str, k: int | None) -> Indices:
        counts = split.counts(len(class_names))
        if k is None or k * len(class_names) >= sum(counts):
            return np.arange(len(split), dtype=np.int64)
        found: list[int] = []
        for label, n in enumerate(quotas(counts, k * len(class_names))):
            found += nested_order(split, label, (purpose, dataset_key, seed, label))[:n].tolist()
        return np.array(found, dtype=np.int64)

    _check(train, class_names, "training")
    if shots is not None and shots * len(class_names) > len(train):
        raise SamplingError(
            f"{shots} shots of {len(class_names)} classes are {shots * len(class_names)} images, "
            f"and the training split has {len(train)}; ask for at most "
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
            raise SamplingError(f"class '{name}' has no {what} images; every class needs some")
