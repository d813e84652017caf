"""Intervals and tests: against scipy and scikit-learn, by hand, and what they refuse."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from sklearn import metrics as sk

from vipbench.results import stats
from vipbench.results.records.metrics import METRICS, compute_metrics, log_odds, metric_value
from vipbench.results.stats import StatsError, TestSet

CLASSES = ["a", "b", "c"]
EVERY = [m.name + (":b" if m.per_class else "") for m in METRICS.values()]


def some(n: int = 60, seed: int = 0, ties: bool = False) -> tuple[Any, Any, list[str]]:
    rng = np.random.default_rng(seed)
    labels = np.append(rng.integers(0, 3, n - 3), [0, 1, 2])
    scores = rng.normal(size=(n, 3)) + np.eye(3)[labels]
    if ties:
        scores = scores.round(0)
    return labels, scores.astype(np.float32), [f"p{i // 3}" for i in range(n)]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_the_metric_of_all_images_is_the_records(name: str, grouped: bool, ties: bool) -> None:
    labels, scores, groups = some(ties=ties)
    tests = TestSet.of(labels, groups if grouped else None, CLASSES)
    (value,), _ = stats.replicates(name, tests, [scores], draws=1)
    assert value == pytest.approx(metric_value(compute_metrics(labels, scores, CLASSES), name))


@pytest.mark.parametrize("name", EVERY)
def test_a_weight_is_so_many_copies_of_a_patient(name: str) -> None:
    labels, scores, groups = some(seed=3, ties=name == "auroc")
    tests = TestSet.of(labels, groups, CLASSES)
    rng = np.random.default_rng(1)
    weights = rng.multinomial(20, [1 / 20] * 20, size=5).astype(float)
    found = stats.weighted_metric(name, tests, scores)(weights)
    for row, value in zip(weights, found, strict=True):
        copies = np.repeat(np.arange(len(labels)), row[tests.group].astype(int))
        reference = compute_metrics(labels[copies], scores[copies], CLASSES)
        assert value == pytest.approx(metric_value(reference, name))


@pytest.mark.parametrize("name", ["auroc", "auprc"])
@pytest.mark.parametrize("absent", [[0], [1, 2]])
def test_a_resample_without_a_class_leaves_it_out(name: str, absent: list[int]) -> None:
    """As a record does: of a class with no image, or with all of them, nothing is known."""
    labels, scores, _ = some(seed=5)
    tests = TestSet.of(labels, None, CLASSES)
    kept = ~np.isin(labels, absent)
    (found,) = stats.weighted_metric(name, tests, scores)(kept[None].astype(float))
    expected = metric_value(compute_metrics(labels[kept], scores[kept], CLASSES), name)
    assert (expected is None) == (len(absent) == 2)
    assert found == pytest.approx(math.nan if expected is None else expected, nan_ok=True)


def test_weighted_ranking_is_scikit_learns() -> None:
    labels, scores, _ = some(seed=4, ties=True)
    order = log_odds(scores.astype(float))
    weights = np.random.default_rng(0).random((3, len(labels)))
    tests = TestSet.of(labels, None, CLASSES)
    for name, of in (("auroc", sk.roc_auc_score), ("auprc", sk.average_precision_score)):
        found = stats.weighted_metric(name, tests, scores)(weights)
        for w, value in zip(weights, found, strict=True):
            each = [of(labels == k, order[:, k], sample_weight=w) for k in range(3)]
            assert value == pytest.approx(np.mean(each))


def test_resamples_are_shared_and_large_ones_come_in_blocks() -> None:
    labels, scores, groups = some()
    tests = TestSet.of(labels, groups, CLASSES)
    _, alone = stats.replicates("accuracy", tests, [scores], draws=50)
    _, pair = stats.replicates("accuracy", tests, [scores[::-1], scores], draws=50)
    assert (alone[:, 0] == pair[:, 1]).all()
    n = 50_000
    many = TestSet.of(np.arange(n) % 2, None, ["a", "b"])
    right = np.eye(2)[np.arange(n) // 2 % 2]
    _, reps = stats.replicates("accuracy", many, [right], draws=100)
    assert reps.std() == pytest.approx(0.5 / math.sqrt(n), rel=0.3)


def test_the_bootstrap_follows_patients_and_not_images() -> None:
    labels = np.arange(200) % 2
    right = np.repeat(np.random.default_rng(0).random(20) < 0.5, 10)
    scores = np.where(right[:, None], np.eye(2)[labels], 1 - np.eye(2)[labels])
    groups = [str(i // 10) for i in range(200)]
    widths = []
    for given_groups in (None, groups):
        tests = TestSet.of(labels, given_groups, ["a", "b"])
        found = stats.images_interval(
            *stats.replicates("accuracy", tests, [scores]), tests.n_groups
        )
        widths.append(found.high - found.low)
    assert widths[1] > 2.5 * widths[0]


def test_the_t_interval_is_scipys() -> None:
    values = np.array([0.7, 0.74, 0.69, 0.75])
    found = stats.seeds_interval(values)
    reference = scipy_stats.ttest_1samp(values, 0)
    assert (found.low, found.high) == pytest.approx(tuple(reference.confidence_interval()))
    assert found.p == pytest.approx(reference.pvalue, rel=1e-6)
    assert (found.n_seeds, found.df) == (4, 3)
    flat = stats.seeds_interval(np.array([0.5, 0.5]))
    assert (flat.low, flat.high, flat.p) == (0.5, 0.5, 0.0)
    assert stats.seeds_interval(np.zeros(3)).p == 1


def test_interval_and_p_value_agree() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        values = rng.normal(0.03, 0.02, 3)
        reps = values + rng.normal(0, 0.02, (500, 1)) + rng.normal(0, 0.01, (500, 3))
        for found in (
            stats.both_interval(values, reps, 100),
            stats.images_interval(values, reps, 100),
            stats.seeds_interval(values),
        ):
            assert found.low <= found.estimate <= found.high
            assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_the_p_value_is_where_the_percentile_interval_ends_at_0() -> None:
    """Of few units, where the levels are widened most."""
    rng = np.random.default_rng(3)
    reps = rng.normal(0.02, 0.02, (500, 1))
    numbers = np.array([-2, -1, 1, 2, 3, 3, 4, 5]) / 100
    for interval in (
        lambda level: stats.images_interval(np.array([0.02]), reps, 10, level),
        lambda level: stats.datasets_bootstrap(numbers, level),
    ):
        p = interval(0.95).p
        assert 0.001 < p < 0.9
        assert interval(1 - p).low == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("place", [0, 4, 7])
def test_each_dataset_is_drawn_as_often_as_any_other(place: int) -> None:
    """Eight datasets are enough; where one has 1 and the rest 0, resamples follow a binomial."""
    found = stats.datasets_bootstrap(np.eye(8)[place])
    tail = scipy_stats.norm.cdf(math.sqrt(8 / 7) * scipy_stats.t.ppf(0.025, 7))
    assert (found.low, found.high) == (0, scipy_stats.binom.ppf(1 - tail, 8, 1 / 8) / 8)
    assert (found.estimate, found.n_datasets) == (1 / 8, 8)


def test_the_variance_over_test_images_is_that_of_a_fresh_sample() -> None:
    """G - 1 in the place of G: by hand, for few groups, where it counts."""
    rng = np.random.default_rng(2)
    reps = rng.normal(0, 0.02, (400, 1)) + rng.normal(0, 0.01, (400, 3))
    found = stats.both_variance(np.array([0.70, 0.72, 0.71]), reps, 11)
    centred = reps - reps.mean(0)
    pairs = [(centred[:, i] * centred[:, j]).sum() / 399 for i, j in ((0, 1), (0, 2), (1, 2))]
    assert found.shared == pytest.approx(np.mean(pairs) * 11 / 10)


def test_both_sources_of_chance_widen_the_interval() -> None:
    rng = np.random.default_rng(1)
    shared = rng.normal(0, 0.02, (2000, 1))
    values = np.array([0.70, 0.72, 0.71, 0.73, 0.69])
    found = stats.both_variance(values, values + shared + rng.normal(0, 0.001, (2000, 5)), 400)
    assert found.own == pytest.approx(np.var(values, ddof=1) / 5)
    assert found.shared == pytest.approx(0.02**2, rel=0.1)
    alone = stats.both_variance(values, values + rng.normal(0, 1e-9, (2000, 5)), 400)
    assert alone.shared == pytest.approx(0, abs=1e-12)
    (one,) = {stats.pooled([found]).estimate, found.estimate}
    assert one == pytest.approx(0.71)
    two = stats.pooled([found, found])
    assert two.high - two.low < stats.pooled([found]).high - stats.pooled([found]).low
    assert two.n_datasets == 2


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_the_closed_test_of_bonferroni(p: list[float]) -> None:
    """Holm's p value of i is the largest Bonferroni p value of the sets that hold i."""
    found = stats.holm(p)
    for i in range(len(p)):
        sets = (
            s for size in range(1, len(p) + 1) for s in itertools.combinations(range(len(p)), size)
        )
        reference = max(min(1.0, len(s) * min(p[j] for j in s)) for s in sets if i in s)
        assert found[i] == pytest.approx(reference)


def test_mcnemar_by_hand() -> None:
    a = np.array([True] * 9 + [False] * 2 + [True] * 50)
    b = np.array([False] * 9 + [True] * 2 + [True] * 50)
    alone_a, alone_b, p = stats.mcnemar(a, b)
    exact = scipy_stats.binomtest(2, 11).pvalue
    assert (alone_a, alone_b) == (9, 2)
    assert p == pytest.approx(exact - math.comb(11, 2) / 2**11)
    with pytest.raises(StatsError, match=r" 4 test images.* 5"):
        stats.mcnemar(a[5:11], b[5:11] & False)


@pytest.mark.parametrize("n", [6, 9, 12])
def test_wilcoxon_is_scipys_and_its_interval_is_the_tests(n: int) -> None:
    rng = np.random.default_rng(n)
    for _ in range(50):
        d = rng.normal(0.5, 1, n)
        found = stats.wilcoxon(d)
        assert found.p == pytest.approx(scipy_stats.wilcoxon(d).pvalue)
        assert (found.p <= 0.05) == (found.low > 0 or found.high < 0)
        assert found.low <= found.estimate <= found.high


def test_wilcoxon_of_ties_and_zeros_counts_all_signs() -> None:
    d = np.array([0.01, 0.01, 0.01, 0.02, 0.02, 0.03, 0.03, 0.0])
    signs = np.array(list(itertools.product((-1, 1), repeat=8)))
    ranks = scipy_stats.rankdata(np.abs(d))
    sums = (signs * ranks)[:, :7].sum(1)
    reference = np.mean(np.abs(sums) >= ranks[:7].sum() - 1e-9)
    assert stats.wilcoxon(d).p == pytest.approx(reference)


@pytest.mark.parametrize(
    ("n", "family", "fact"),
    [
        (1, 1, "p = 1: .* 6 "),
        (3, 1, "p = 0.25: .* 6 "),
        (4, 1, "p = 0.125"),
        (5, 1, "p = 0.0625"),
        (6, 2, "2 tests: .* 7 datasets"),
        (8, 10, "9 datasets"),
    ],
)
def test_wilcoxon_refuses_what_its_n_cannot_carry(n: int, family: int, fact: str) -> None:
    with pytest.raises(StatsError, match="Wilcoxon") as caught:
        stats.wilcoxon(np.arange(1, n + 1) / 100, family)
    assert re.search(fact, str(caught.value))
    needed = int(str(caught.value).split("at least ")[1].split()[0])
    assert stats.wilcoxon(np.arange(1, needed + 1) / 100, family).p * family <= 0.05


def test_other_refusals() -> None:
    values, reps = np.array([0.7, 0.72]), np.full((10, 2), 0.7)
    with pytest.raises(StatsError, match="1 seed "):
        stats.seeds_interval(values[:1])
    with pytest.raises(StatsError, match=r"2 seeds .* 3"):
        stats.both_interval(values, reps, 100)
    with pytest.raises(StatsError, match=r"^9 "):
        stats.images_interval(values, reps, 9)
    with pytest.raises(StatsError, match="resample"):
        stats.images_interval(values, reps, 100)
    with pytest.raises(StatsError, match="undefined"):
        stats.images_interval(values, reps * np.nan, 100)
    with pytest.raises(StatsError, match="7 datasets "):
        stats.datasets_bootstrap(np.arange(7.0))
    with pytest.raises(StatsError, match=r"3 methods.* 2"):
        stats.average_ranks(["a", "b"], np.zeros((8, 2)))
    with pytest.raises(StatsError, match=" 6"):
        stats.average_ranks(["a", "b", "c"], np.zeros((3, 3)))


def test_ranks_by_hand() -> None:
    names = ("worst", "good", "best", "second")
    values = np.tile([0.1, 0.5, 0.7, 0.6], (14, 1))
    values[0] = [0.4, 0.4, 0.4, 0.3]
    values[1] = [0.9, 0.5, 0.7, 0.6]
    found = stats.average_ranks(names, values)
    reference = (
        (12 * 4 + 2 + 1) / 14,
        (12 * 3 + 2 + 4) / 14,
        (12 + 2 + 2) / 14,
        (12 * 2 + 4 + 3) / 14,
    )
    assert found.ranks == pytest.approx(reference)
    # q of 4 methods at 5 % is 2.569 (Demšar 2006, table 5).
    assert found.critical_difference == pytest.approx(2.569 * math.sqrt(20 / 84), abs=1e-3)
    assert found.cliques() == [(2, 3), (3, 1), (1, 0)]
    chi2 = scipy_stats.friedmanchisquare(*values.T).statistic
    f = 13 * chi2 / (14 * 3 - chi2)  # Iman and Davenport 1980
    assert found.p == pytest.approx(scipy_stats.f.sf(f, 3, 39))
    far = stats.average_ranks(list("abc"), np.tile([0.1, 0.5, 0.9], (12, 1)))
    assert (far.p, far.cliques()) == (0, [])
    turned = stats.average_ranks(list("abc"), np.tile([0.1, 0.5, 0.9], (12, 1)), False)
    assert turned.ranks == (1, 2, 3)
    assert stats.average_ranks(list("abc"), np.ones((12, 3))).p == 1
