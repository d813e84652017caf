"""Every metric against its definition, spelt out in plain Python."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vipbench.errors import UsageError
from vipbench.results.records.metrics import (
    METRICS,
    compute_metrics,
    find_metric,
    log_odds,
    majority_metrics,
    metric_value,
)
from vipbench.results.stats import TestSet, weighted_metric


@st.composite
def cells(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[str]]:
    c = draw(st.integers(2, 5))
    n = draw(st.integers(1, 25))
    labels = draw(arrays(np.int64, n, elements=st.integers(0, c - 1)))
    # Few different values, so that ties are common; quarters are exact in float32.
    scores = draw(arrays(np.float64, (n, c), elements=st.integers(-12, 12).map(lambda v: v / 4)))
    return labels, scores, [f"class {i}" for i in range(c)]


def brute_force(labels: np.ndarray, scores: np.ndarray, names: list[str]) -> dict[str, Any]:
    n, c = scores.shape
    predicted = [max(range(c), key=lambda j, row=row: (row[j], -j)) for row in scores.tolist()]
    y = labels.tolist()
    p = [[math.exp(v) / sum(map(math.exp, row)) for v in row] for row in scores.tolist()]
    recall, spec, f1, areas, precisions, left_out = {}, {}, [], [], [], []
    for j, name in enumerate(names):
        tp = sum(a == j and b == j for a, b in zip(y, predicted, strict=True))
        fp = sum(a != j and b == j for a, b in zip(y, predicted, strict=True))
        positives = y.count(j)
        recall[name] = tp / positives if positives else None
        negatives = n - positives
        spec[name] = (negatives - fp) / negatives if negatives else None
        f1.append(2 * tp / (positives + tp + fp) if positives + tp + fp else 0.0)
        if not positives or not negatives:
            left_out.append(name)
            continue
        # Rounded, so that images whose p agree in exact arithmetic tie here, too.
        column = [round(row[j], 9) for row in p]
        yes = [v for v, a in zip(column, y, strict=True) if a == j]
        no = [v for v, a in zip(column, y, strict=True) if a != j]
        wins = sum((a > b) + (a == b) / 2 for a in yes for b in no)
        areas.append(wins / (len(yes) * len(no)))
        area, before = 0.0, 0
        for cut in sorted(set(column), reverse=True):
            hits = sum(v >= cut for v in yes)
            area += (hits - before) / len(yes) * hits / sum(v >= cut for v in column)
            before = hits
        precisions.append(area)
    ece = 0.0
    for b in range(15):
        inside = [i for i in range(n) if b / 15 < max(p[i]) <= (b + 1) / 15]
        right = sum(predicted[i] == y[i] for i in inside)
        ece += abs(right - sum(max(p[i]) for i in inside)) / n
    known = [v for v in recall.values() if v is not None]
    return {
        "accuracy": sum(a == b for a, b in zip(y, predicted, strict=True)) / n,
        "macro_f1": sum(f1) / c,
        "balanced_accuracy": sum(known) / len(known),
        "auroc": sum(areas) / len(areas) if areas else None,
        "auprc": sum(precisions) / len(precisions) if precisions else None,
        "ece": ece,
        "sensitivity": recall,
        "specificity": spec,
        "n": n,
        "left_out": left_out,
    }


def _on_an_edge(scores: np.ndarray) -> bool:
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    edges = p.max(1) * 15
    return bool((np.abs(edges - np.round(edges)) < 1e-9).any())


@given(cells())
def test_metrics_are_what_they_say(cell: tuple[np.ndarray, np.ndarray, list[str]]) -> None:
    labels, scores, names = cell
    found, expected = compute_metrics(labels, scores, names), brute_force(labels, scores, names)
    if _on_an_edge(scores):  # p = 1/3 may fall either side of a bin's edge
        found.pop("ece")
        expected.pop("ece")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, (str, int, list)) or value is None:
            assert found[name] == value, name
        else:
            assert found[name] == pytest.approx(value, abs=1e-9), name


@given(cells(), st.integers(-8, 8))
def test_only_differences_of_scores_count(
    cell: tuple[np.ndarray, np.ndarray, list[str]], shift: int
) -> None:
    labels, scores, names = cell
    base = compute_metrics(labels, scores, names)
    moved = compute_metrics(labels, scores + shift, names)
    for name in ("accuracy", "macro_f1", "auroc", "auprc"):
        assert moved[name] == pytest.approx(base[name], abs=1e-12)


def test_confident_scores_still_rank() -> None:
    # Both images' p rounds to 1 for class 0; the one of class 0 is still the surer.
    scores = np.array([[60.0, 0.0], [50.0, 0.0]])
    assert compute_metrics([0, 1], scores, ["a", "b"])["auroc"] == 1.0
    assert compute_metrics([1, 0], scores, ["a", "b"])["auroc"] == 0.0


def test_ece_by_hand() -> None:
    # Confidences 0.75 (right), 0.75 (wrong), 0.9 (right): |1 - 1.5| / 3 + |1 - 0.9| / 3.
    scores = np.log(np.array([[0.75, 0.25], [0.75, 0.25], [0.1, 0.9]]))
    found = compute_metrics([0, 1, 1], scores, ["a", "b"])["ece"]
    assert found == pytest.approx((0.5 + 0.1) / 3, abs=1e-6)


def test_every_bin_of_the_ece_stands_alone() -> None:
    """One image in the middle of each of the 15 bins, right in every second one: two bins that were
    taken as one would set their errors off against each other."""
    confidence = (np.arange(15) + 0.5) / 15
    p = np.tile((1 - confidence)[:, None] / 39, (1, 40))  # of 40 classes, so that 1/30 is highest
    p[:, 0] = confidence
    labels = np.arange(15) % 2
    expected = np.abs((labels == 0) - confidence).mean()
    names = [str(i) for i in range(40)]
    assert compute_metrics(labels, np.log(p), names)["ece"] == pytest.approx(expected, abs=1e-6)
    weighted = weighted_metric("ece", TestSet.of(labels, None, names), np.log(p))
    assert weighted(np.ones((1, 15))) == pytest.approx([expected], abs=1e-6)


def test_first_of_ties_is_predicted() -> None:
    found = compute_metrics([0, 1], np.zeros((2, 2)), ["a", "b"])
    assert (found["accuracy"], found["auroc"]) == (0.5, 0.5)
    assert found["sensitivity"] == {"a": 1.0, "b": 0.0}


def test_undefined_is_none_and_said() -> None:
    found = compute_metrics([1, 1], np.array([[0.0, 1.0, 0.0]] * 2), ["a", "b", "c"])
    assert found["auroc"] is None
    assert found["auprc"] is None
    assert found["left_out"] == ["a", "b", "c"]
    assert found["sensitivity"] == {"a": None, "b": 1.0, "c": None}
    assert found["specificity"] == {"a": 1.0, "b": None, "c": 1.0}
    assert found["macro_f1"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("labels", "scores", "names", "named"),
    [
        ([0, 1], [[0.0, 1.0], [np.nan, 0.0]], "ab", "image 1, class 'a'"),
        ([0, 1], [[0.0, np.inf], [0.0, 0.0]], "ab", "inf"),
        ([0, 1], [[0.0, 1e39], [0.0, 0.0]], "ab", "finite"),
        ([0, 1], [[0.0, 1.0, 2.0]] * 2, "ab", r"\(2, 3\).*\(N, 2\)"),
        ([0, 1], [0.0, 1.0], "ab", r"\(2,\)"),
        ([0], [[0.0, 1.0]] * 2, "ab", r"\(1,\)"),
        ([0, 2], [[0.0, 1.0]] * 2, "ab", "label 2 .*image 1"),
        ([0, -1], [[0.0, 1.0]] * 2, "ab", "label -1"),
        ([0.0, 1.0], [[0.0, 1.0]] * 2, "ab", "integers"),
        ([0, 0], [[0.0], [1.0]], "a", "two"),
        ([], np.zeros((0, 2)), "ab", "one"),
        ([0, 1], [["x", "y"]] * 2, "ab", "real"),
    ],
)
def test_what_is_wrong_is_named(labels: Any, scores: Any, names: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        compute_metrics(labels, scores, list(names))


@given(st.integers(2, 5), st.data())
def test_majority_is_a_constant_prediction(c: int, data: st.DataObject) -> None:
    counts = st.lists(st.integers(0, 4), min_size=c, max_size=c).filter(any)
    train, test = data.draw(counts), data.draw(counts)
    names = [f"class {i}" for i in range(c)]
    found = majority_metrics(train, test, names)
    winner = train.index(max(train))
    scores = np.tile(np.eye(c)[winner], (sum(test), 1))
    expected = compute_metrics(np.repeat(np.arange(c), test), scores, names)
    expected["ece"] = None
    for name, value in expected.items():
        if isinstance(value, float):
            assert found[name] == pytest.approx(value), name
        else:
            assert found[name] == value, name


def test_majority_refuses_what_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"2 training .*3 test "):
        majority_metrics([1, 2], [1, 2, 3], ["a", "b", "c"])
    with pytest.raises(ValueError, match="empty"):
        majority_metrics([0, 0], [1, 2], ["a", "b"])


def test_metrics_are_found_by_name() -> None:
    labels, scores = [0, 1, 1], [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    found = compute_metrics(labels, scores, ["a:b", "c"])
    assert set(METRICS) == set(found) - {"n", "left_out"}
    assert metric_value(found, "accuracy") == pytest.approx(2 / 3)
    assert metric_value(found, "sensitivity:a:b") == 1.0
    assert metric_value(found, "sensitivity:other") is None
    assert find_metric("ece").higher_better is False
    for wrong in ("acuracy", "sensitivity", "accuracy:a", ""):
        with pytest.raises(UsageError, match="metric"):
            find_metric(wrong)
    with pytest.raises(UsageError, match="'accuracy'"):
        find_metric("acuracy")


def plain_log_odds(s: np.ndarray) -> np.ndarray:
    """By the definition, with more digits than a double has."""
    wide = s.astype(np.longdouble)
    others = [np.delete(wide, i, axis=1) for i in range(s.shape[1])]
    logs = [np.log(np.exp(o - o.max(1, keepdims=True)).sum(1)) + o.max(1) for o in others]
    return wide - np.stack(logs, axis=1)


@pytest.mark.parametrize("scale", [0.01, 1, 30, 1000])
@pytest.mark.parametrize("classes", [2, 3, 40, 250])
def test_log_odds_are_exact(classes: int, scale: float) -> None:
    rng = np.random.default_rng(classes)
    scores = (rng.normal(size=(50, classes)) * scale).astype(np.float32).astype(np.float64)
    scores[:5, 0] = scores[:5].max(1)  # two highest ones
    expected = plain_log_odds(scores)
    error = np.abs(log_odds(scores) - expected) / np.maximum(1, np.abs(expected))
    assert error.max() < 2e-15


@pytest.mark.parametrize("classes", [2, 3, 13, 40])
def test_images_whose_scores_differ_in_their_order_alone_tie(classes: int) -> None:
    rng = np.random.default_rng(0)
    row = rng.normal(size=classes) * 4
    row[0] = row.max()
    orders = np.stack([rng.permutation(classes) for _ in range(30)])
    for scores in (row[orders], np.asfortranarray(row[orders]), row[orders][::-1][::-1]):
        found = log_odds(scores)
        back = np.take_along_axis(found, np.argsort(orders, axis=1), axis=1)
        assert (back == back[0]).all()


def test_a_thousand_classes_take_a_moment() -> None:
    scores = np.random.default_rng(0).normal(size=(400, 1000))
    begun = time.process_time()
    log_odds(scores)
    assert time.process_time() - begun < 2  # 8.8 s where each class sorts the others
