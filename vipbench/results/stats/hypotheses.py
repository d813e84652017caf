"""Tests of hypotheses, with the n that each needs.

Each raises StatsError, saying what would be needed, where its n cannot carry it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vipbench.results.stats.intervals import LEVEL, Interval, StatsError

Floats = NDArray[np.floating[Any]]
MIN_BLOCKS = 6


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction of a family of p values, in their order (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    m, out, worst = len(p), [0.0] * len(p), 0.0
    for k, i in enumerate(order):
        worst = max(worst, min(1.0, (m - k) * p[i]))
        out[i] = worst
    return out


def mcnemar(right_a: NDArray[np.bool_], right_b: NDArray[np.bool_]) -> tuple[int, int, float]:
    """(images that A alone has right, that B alone has right, two-sided mid-p value).

    right_a, right_b: (N,) of one pair of trained models on the same N independent images. The mid-p
    variant keeps its level closely where the exact test is far below it (Fagerland et al. 2013).
    StatsError where fewer than 5 images part the two, which cannot reach 5 %.
    """
    from scipy import stats

    a, b = int(np.sum(right_a & ~right_b)), int(np.sum(right_b & ~right_a))
    n, k = a + b, min(a, b)
    # The smallest mid-p value that n images can give is 0.5^n.
    if n < 5:
        raise StatsError(
            f"the two differ on {n} test image{'s' * (n != 1)}: McNemar's test needs at least 5, "
            f"since no outcome of fewer can reach p < 0.05"
        )
    mid = stats.binom.cdf(k, n, 0.5) - 0.5 * stats.binom.pmf(k, n, 0.5)
    return a, b, min(1.0, float(2 * mid))


def smallest_wilcoxon_p(n: int) -> float:
    """The smallest two-sided p value that n differences can give."""
    return 2.0 ** (1 - n)


def wilcoxon(differences: Floats, family: int = 1, level: float = LEVEL) -> Interval:
    """Wilcoxon's signed-rank test over D datasets, exact, with the Hodges–Lehmann estimate and the
    interval that belongs to the test.

    differences: (D,), one a dataset, its seeds averaged before, as they are dependent.
    Zeros keep their ranks and take no side (Pratt 1959). family: how many tests are corrected for
    together. StatsError where even the clearest outcome could not be significant.
    """
    from scipy import stats

    d = np.asarray(differences, dtype=np.float64)
    n, alpha = int(np.count_nonzero(d)), 1 - level
    best = smallest_wilcoxon_p(n) if n else 1.0
    if best * family > alpha + 1e-12:
        needed = math.ceil(1 - math.log2(alpha / family))
        corrected = f", corrected over {family} tests" if family > 1 else ""
        raise StatsError(
            f"Wilcoxon's test over {n} dataset{'s' * (n != 1)} with a difference cannot go below "
            f"p = {best:.3g}{corrected}: at least {needed} datasets are needed"
        )
    ties = len(np.unique(np.abs(d))) < len(d) or n < len(d)
    method: Any = "exact" if len(d) <= 50 else "asymptotic"
    if ties and len(d) <= 16:
        method = stats.PermutationMethod(n_resamples=2**16 + 1)
    elif ties:
        method = "asymptotic"
    p = float(stats.wilcoxon(d, zero_method="pratt", method=method).pvalue)
    estimate, low, high = _hodges_lehmann(d, alpha)
    return Interval(estimate, low, high, level, "datasets", "Hodges–Lehmann", 0, 0, p, None, len(d))


def _hodges_lehmann(d: Floats, alpha: float) -> tuple[float, float, float]:
    """Median of the means of all pairs, and the interval of what the test does not reject."""
    i, j = np.triu_indices(len(d))
    walsh = np.sort((d[i] + d[j]) / 2)
    # P(W <= w) under the hypothesis, from the number of sets of ranks with each sum.
    counts = np.zeros(len(walsh) + 1)
    counts[0] = 1
    for rank in range(1, len(d) + 1):
        counts[rank:] += counts[:-rank].copy()
    tail = np.cumsum(counts) / 2.0 ** len(d)
    # The test rejects where W is `cut` or less.
    cut = int(np.searchsorted(tail, alpha / 2 + 1e-12, side="right")) - 1
    return float(np.median(walsh)), float(walsh[cut]), float(walsh[-1 - cut])


@dataclass(frozen=True)
class Ranks:
    """Average ranks of k methods over D datasets (1 best), Friedman's test in Iman and Davenport's
    form, and Nemenyi's critical difference: closer ranks do not differ significantly."""

    names: tuple[str, ...]
    ranks: tuple[float, ...]
    n_datasets: int
    p: float
    critical_difference: float
    level: float

    def cliques(self) -> list[tuple[int, ...]]:
        """The largest sets of methods within one critical difference, best first, as indices;
        sets of one are left out."""
        order = sorted(range(len(self.ranks)), key=lambda i: self.ranks[i])
        found: list[tuple[int, ...]] = []
        for start in range(len(order)):
            low = self.ranks[order[start]]
            own = [i for i in order[start:] if self.ranks[i] - low < self.critical_difference]
            if len(own) > 1 and not (found and set(own) <= set(found[-1])):
                found.append(tuple(own))
        return found


def average_ranks(
    names: Sequence[str], values: Floats, higher_better: bool = True, level: float = LEVEL
) -> Ranks:
    """Ranks of k methods over D datasets (Demšar 2006).

    values: (D,k), a dataset's seeds averaged before. Ties share their mean rank. StatsError for
    D < 6 or k < 3, or where the critical difference is beyond the largest difference of ranks.
    """
    from scipy import stats

    d, k = values.shape
    if k < 3:
        raise StatsError(
            f"average ranks need at least 3 methods, got {k}; `vipbench compare` compares two"
        )
    if d < MIN_BLOCKS:
        raise StatsError(
            f"average ranks need at least {MIN_BLOCKS} datasets, got {d}: with fewer, even "
            f"Wilcoxon's signed-rank test of two methods cannot reach p < 0.05"
        )
    each = stats.rankdata(-values if higher_better else values, axis=1)
    q = float(stats.studentized_range.ppf(level, k, np.inf)) / math.sqrt(2)
    cd = q * math.sqrt(k * (k + 1) / (6 * d))
    if cd > k - 1:
        raise StatsError(
            f"{d} datasets cannot separate {k} methods: the critical difference is {cd:.2f}, ranks "
            f"differ by {k - 1} at most; at least {math.ceil(d * (cd / (k - 1)) ** 2)} are needed"
        )
    if np.all(each == each[:, :1]):
        p = 1.0
    else:
        chi2 = float(stats.friedmanchisquare(*each.T).statistic)
        rest = d * (k - 1) - chi2
        f = math.inf if rest <= 0 else (d - 1) * chi2 / rest
        p = float(stats.f.sf(f, k - 1, (k - 1) * (d - 1)))
    means = tuple(float(v) for v in each.mean(0))
    return Ranks(tuple(names), means, d, p, cd, level)
