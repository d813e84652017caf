"""What is computed from one cell's scores, each metric defined once, and the majority baseline.

Throughout, N test images and C classes; the predicted class is the first of the highest scores, and
p = softmax(scores) in double precision. Sources: macro averages as in Sokolova and Lapalme 2009;
balanced accuracy as in Brodersen et al. 2010; ECE as in Guo et al. 2017.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vipbench.errors import unknown

ECE_BINS = 15


@dataclass(frozen=True)
class Metric:
    """How a metric is shown. Values are fractions; `percent` ones are shown times 100.

    revision: raised when the number's definition changes. per_class: one value a class, shown as
    `NAME:CLASS`.
    """

    name: str
    title: str
    definition: str
    percent: bool = True
    higher_better: bool = True
    per_class: bool = False
    revision: int = 1


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("accuracy", "Accuracy", "share of test images whose predicted class is right"),
        Metric(
            "macro_f1",
            "Macro-F1",
            "mean of F1 over all C classes; a class neither present nor predicted counts 0",
        ),
        Metric(
            "balanced_accuracy",
            "Balanced accuracy",
            "mean sensitivity over the classes present in the test set",
        ),
        Metric(
            "auroc",
            "AUROC",
            "mean over classes of the area under the one-vs-rest ROC curve of p; classes without "
            "test images, or holding all of them, are left out",
        ),
        Metric(
            "auprc",
            "AUPRC",
            "mean over classes of the one-vs-rest average precision of p (steps, not "
            "interpolated); classes left out as for AUROC",
        ),
        Metric(
            "ece",
            "ECE",
            f"expected calibration error of max p over {ECE_BINS} bins of equal width, closed on "
            "the right",
            higher_better=False,
        ),
        Metric(
            "sensitivity",
            "Sensitivity",
            "share of a class's test images predicted as that class",
            per_class=True,
        ),
        Metric(
            "specificity",
            "Specificity",
            "share of the other classes' test images not predicted as that class",
            per_class=True,
        ),
    )
}


def compute_metrics(
    labels: ArrayLike, scores: ArrayLike, class_names: Sequence[str]
) -> dict[str, Any]:
    """Every metric of one cell, as it stands in the record.

    labels: (N,) class indices. scores: (N,C), logits or numbers like them. class_names: C names.
    Returns METRICS' names -> a fraction, or None where the test set leaves it undefined (per-class
    ones: class name -> that), `n`: N, and `left_out`: the classes that AUROC and AUPRC leave out.
    Raises ValueError on wrong shapes, labels outside 0…C-1, or scores that
    float32 cannot hold as finite numbers.
    """
    y, s = _checked(labels, scores, class_names)
    c, predicted = len(class_names), s.argmax(1)
    confusion = np.bincount(y * c + predicted, minlength=c * c).reshape(c, c)
    present = confusion.sum(1)
    right = np.diag(confusion)
    sensitivity = [_ratio(right[i], present[i]) for i in range(c)]
    rest = len(y) - present
    specificity = [_ratio(rest[i] - confusion[:, i].sum() + right[i], rest[i]) for i in range(c)]
    usable = [i for i in range(c) if 0 < present[i] < len(y)]
    auroc, auprc = _ranking(y, log_odds(s), usable)
    return {
        "accuracy": float(right.sum() / len(y)),
        "macro_f1": _macro_f1(y, predicted, c),
        "balanced_accuracy": float(np.mean([v for v in sensitivity if v is not None])),
        "auroc": auroc,
        "auprc": auprc,
        "ece": _ece(y, s),
        "sensitivity": dict(zip(class_names, sensitivity, strict=True)),
        "specificity": dict(zip(class_names, specificity, strict=True)),
        "n": len(y),
        "left_out": [class_names[i] for i in range(c) if i not in usable],
    }


def softmax(scores: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Softmax over the last axis, in double precision."""
    s = np.asarray(scores, dtype=np.float64)
    e = np.exp(s - s.max(-1, keepdims=True))
    result: NDArray[np.float64] = e / e.sum(-1, keepdims=True)
    return result


def find_metric(name: str) -> Metric:
    """The metric called `name`, or `NAME:CLASS` of a per-class one. Raises UsageError."""
    base, _, of_class = name.partition(":")
    metric = METRICS.get(base)
    if metric is None or metric.per_class != bool(of_class):
        known = [m.name + (":CLASS" if m.per_class else "") for m in METRICS.values()]
        raise unknown("metric", name, known)
    return metric


def metric_value(metrics: Mapping[str, Any], name: str) -> float | None:
    """A record's value of `name` (see find_metric), None where it is undefined or absent."""
    base, _, of_class = name.partition(":")
    value = metrics.get(base)
    if of_class:
        value = value.get(of_class) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, (int, float)) else None


def _checked(
    labels: ArrayLike, scores: ArrayLike, class_names: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    y, s, c = np.asarray(labels), np.asarray(scores), len(class_names)
    if c < 2:
        raise ValueError(f"{c} class names; metrics need at least two classes")
    if s.ndim != 2 or s.shape[1] != c:
        raise ValueError(f"scores have shape {s.shape}; expected (N, {c}), one column per class")
    if y.shape != (s.shape[0],) or len(y) == 0:
        raise ValueError(
            f"labels have shape {y.shape}; expected ({s.shape[0]},), at least one image"
        )
    if y.dtype.kind not in "iu":
        raise ValueError(f"labels have type {y.dtype}; expected integers")
    if s.dtype.kind not in "fiu":
        raise ValueError(f"scores have type {s.dtype}; expected real numbers")
    outside = np.flatnonzero((y < 0) | (y >= c))
    if len(outside):
        raise ValueError(f"label {y[outside[0]]} of image {outside[0]} lies outside 0…{c - 1}")
    # The store keeps float32: what is computed here must follow from what is kept there.
    with np.errstate(over="ignore"):
        s = s.astype(np.float32)
    bad = np.argwhere(~np.isfinite(s))
    if len(bad):
        row, column = (int(v) for v in bad[0])
        raise ValueError(
            f"scores are not finite: {s[row, column]} for image {row}, class "
            f"'{class_names[column]}' ({len(bad)} of {s.size} values)"
        )
    return y.astype(np.int64), s.astype(np.float64)


def _ratio(part: Any, whole: Any) -> float | None:
    return float(part / whole) if whole else None


def log_odds(s: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,C) log(p / (1 - p)): the same order as p, but two confident images, whose p would both
    round to 1, stay apart. Takes time in proportion to N C log C."""
    # In the order of the scores, so that images whose scores differ in their order alone tie to the
    # bit; in rows one after another, since a sum's rounding depends on how they lie in memory.
    order = np.argsort(s, axis=1)
    ranked = np.ascontiguousarray(np.take_along_axis(s, order, axis=1))
    top, second = ranked[:, -1:], ranked[:, -2:-1]
    terms = np.exp(ranked - top)
    with np.errstate(divide="ignore"):  # what the highest class gives is replaced
        odds = ranked - top - np.log(terms.sum(1, keepdims=True) - terms)
    # Taking the largest term from the sum would leave little but rounding.
    highest = top - second - np.log(np.exp(ranked[:, :-1] - second).sum(1, keepdims=True))
    result = np.empty_like(ranked)
    np.put_along_axis(result, order, np.where(ranked == top, highest, odds), axis=1)
    return result


def _ranking(
    y: NDArray[np.int64], order: NDArray[np.float64], usable: list[int]
) -> tuple[float | None, float | None]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    if not usable:
        return None, None
    auroc = [roc_auc_score(y == i, order[:, i]) for i in usable]
    auprc = [average_precision_score(y == i, order[:, i]) for i in usable]
    return float(np.mean(auroc)), float(np.mean(auprc))


def _macro_f1(y: NDArray[np.int64], predicted: NDArray[np.int64], c: int) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(y, predicted, labels=range(c), average="macro", zero_division=0))


def _ece(y: NDArray[np.int64], s: NDArray[np.float64]) -> float:
    confidence = softmax(s).max(1)
    # From the scores, as everywhere: p may round two unequal scores to one value.
    right = s.argmax(1) == y
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    gap = np.bincount(bins, weights=right - confidence, minlength=ECE_BINS)
    return float(np.abs(gap).sum() / len(y))


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
