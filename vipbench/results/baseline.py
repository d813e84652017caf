"""The row that every table is held against: the most frequent class. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def majority_metrics(
    train_counts: Sequence[int], test_counts: Sequence[int], class_names: Sequence[str]
) -> dict[str, Any]:
    """The metrics of always predicting the class that is most frequent in the training split.

    Counts are images per class, in `class_names`' order; the first of ties is taken. Keys as of
    `compute_metrics`. The same score for every image gives AUROC 0.5 and, per class, an average
    precision equal to the class's share; there is no confidence and so no ECE. Raises ValueError
    where the counts do not match or a split is empty.
    """
    c, n = len(class_names), sum(test_counts)
    if not c == len(train_counts) == len(test_counts) or c < 2:
        raise ValueError(
            f"{len(train_counts)} training and {len(test_counts)} test counts for {c} classes"
        )
    if n < 1 or sum(train_counts) < 1:
        raise ValueError("the training or the test split is empty")
    winner = max(range(c), key=lambda i: (train_counts[i], -i))
    hit = test_counts[winner]
    sensitivity = [float(i == winner) if test_counts[i] else None for i in range(c)]
    specificity = [float(i != winner) if test_counts[i] < n else None for i in range(c)]
    recalls = [v for v in sensitivity if v is not None]
    usable = [i for i in range(c) if 0 < test_counts[i] < n]
    return {
        "accuracy": hit / n,
        # F1 of the winner is 2·hit / (n predicted + hit present); the others' is 0.
        "macro_f1": 2 * hit / (n + hit) / c,
        "balanced_accuracy": sum(recalls) / len(recalls),
        "auroc": 0.5 if usable else None,
        "auprc": sum(test_counts[i] / n for i in usable) / len(usable) if usable else None,
        "ece": None,
        "sensitivity": dict(zip(class_names, sensitivity, strict=True)),
        "specificity": dict(zip(class_names, specificity, strict=True)),
        "n": n,
        "left_out": [class_names[i] for i in range(c) if i not in usable],
    }
