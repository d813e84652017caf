"""Confidence intervals, each for a population that it names.

Two things were drawn at random: the seeds' support sets, and the test images (patients). An
interval is for new draws of one of them, the other held as it is, or of both. docs/statistics.md
has the formulas, their sources and their measured coverage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vipbench.errors import UsageError

LEVEL = 0.95
BOTH = "t interval over seeds and test images"
MIN_GROUPS = 10
MIN_DATASETS = 8
Floats = NDArray[np.floating[Any]]
Population = Literal["images", "seeds", "both", "datasets"]
POPULATIONS: dict[str, str] = {
    "images": "new test images, for these trained models",
    "seeds": "new support sets, for these test images",
    "both": "new support sets and new test images",
    "datasets": "new datasets like these",
}


class StatsError(UsageError):
    """A statistic that its n cannot carry; the message says what would be needed. `reason`: the
    message without `todo`, which several errors may share."""

    def __init__(self, reason: str, todo: str = "") -> None:
        super().__init__(f"{reason}; {todo}" if todo else reason)
        self.reason, self.todo = reason, todo


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; all fractions.

    population: see POPULATIONS. n: how many seeds, groups and datasets it rests on. df: degrees of
    freedom of the t distribution, where it rests on one. p: two-sided, of the hypothesis that the
    true value is 0; it agrees with the interval. method: how it was made, for a caption.
    """

    estimate: float
    low: float
    high: float
    level: float
    population: Population
    method: str
    n_seeds: int
    n_groups: int
    p: float
    df: float | None = None
    n_datasets: int = 1


@dataclass(frozen=True)
class Variance:
    """An estimate whose variance has two parts: `own`, measured by the spread of R seeds, and
    `shared` by all seeds, measured by resampling G groups of test images; each with the degrees of
    freedom of its measurement."""

    estimate: float
    own: float
    own_df: float
    shared: float
    shared_df: float
    n_seeds: int
    n_groups: int


def images_interval(values: Floats, reps: Floats, n_groups: int, level: float = LEVEL) -> Interval:
    """For new test images, the R trained models held as they are.

    values: (R,) one number a seed; reps: (B,R) the same under B resamples of the G groups (see
    `resampling.replicates`). The percentile interval of the mean over seeds, its levels widened for
    small G (Hesterberg 2015, "expanded percentile": without, G = 10 covers about 90 %). StatsError
    where G < 10, or where no resample differs from another.
    """
    _enough_groups(n_groups)
    mean, drawn = float(np.mean(values)), np.sort(reps.mean(1))
    if np.isnan(drawn).any():
        raise StatsError(_UNDEFINED)
    if drawn[0] == drawn[-1] and drawn[0] != 0:
        raise StatsError(
            f"every resample of the {n_groups} test images gives {mean:g}: the bootstrap gives no "
            f"interval; more test images are needed"
        )
    tail = _expanded((1 - level) / 2, n_groups)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    p = _percentile_p(drawn, n_groups)
    return Interval(
        mean,
        float(low),
        float(high),
        level,
        "images",
        "bootstrap over test images",
        len(values),
        n_groups,
        p,
    )


def seeds_interval(values: Floats, n_groups: int = 0, level: float = LEVEL) -> Interval:
    """For new seeds, each with a support set of its own, on these test images: the t interval of
    R >= 2 numbers (R,). A percentile bootstrap over 3 seeds covers below 90 %. StatsError for
    R = 1.
    """
    r = len(values)
    _enough_seeds(r, 2)
    of = Variance(
        float(np.mean(values)), float(np.var(values, ddof=1)) / r, r - 1, 0.0, math.inf, r, n_groups
    )
    return t_interval(of, "seeds", "t interval over seeds", level)


def both_interval(values: Floats, reps: Floats, n_groups: int, level: float = LEVEL) -> Interval:
    """For new seeds and new test images: `t_interval` with the variance of `both_variance`."""
    return t_interval(both_variance(values, reps, n_groups), "both", BOTH, level)


def both_variance(values: Floats, reps: Floats, n_groups: int) -> Variance:
    """The mean over R seeds where seeds and test images are both random: seeds are to test images
    what readers are to cases (Obuchowski and Rockette 1995, in the form of Hillis 2007).

    values: (R,); reps: (B,R) under B resamples of the G groups. With S² the variance over seeds and
    Cov the mean covariance of two seeds' numbers over the resamples, Var = S²/R + max(Cov, 0).
    StatsError where R < 3 or G < 10.
    """
    r = len(values)
    _enough_seeds(r, 3)
    _enough_groups(n_groups)
    if np.isnan(reps).any():
        raise StatsError(_UNDEFINED)
    # A resample of G groups varies by (G-1)/G of what a fresh sample does.
    cov = np.cov(reps, rowvar=False) * (n_groups / (n_groups - 1))
    shared = max(0.0, float((cov.sum() - np.trace(cov)) / (r * (r - 1))))
    own = float(np.var(values, ddof=1)) / r
    return Variance(float(np.mean(values)), own, r - 1, shared, n_groups - 1, r, n_groups)


def pooled(parts: Sequence[Variance], level: float = LEVEL) -> Interval:
    """The unweighted mean over D datasets, for new seeds and test images of these very datasets:
    variances add, degrees of freedom after Satterthwaite."""
    d = len(parts)
    own, own_df = _sum([(part.own / d**2, part.own_df) for part in parts])
    shared, shared_df = _sum([(part.shared / d**2, part.shared_df) for part in parts])
    of = Variance(
        float(np.mean([part.estimate for part in parts])),
        own,
        own_df,
        shared,
        shared_df,
        min(part.n_seeds for part in parts),
        sum(part.n_groups for part in parts),
    )
    return t_interval(of, "both", BOTH, level, d)


def t_interval(
    of: Variance, population: Population, method: str, level: float = LEVEL, n_datasets: int = 1
) -> Interval:
    """estimate ± k · sqrt(own + shared); a variance of 0 gives no width, and p 0 or 1.

    Where both parts have a say, no exact k is known. Satterthwaite's is too small for 3 seeds,
    Cochran and Cox's too large; k is two thirds of the way to the latter, which keeps the error
    near its 5 % (docs/statistics.md). Where one part is 0 all three are the t distribution's.
    """
    from scipy import optimize, special

    total, df = _sum([(of.own, of.own_df), (of.shared, of.shared_df)])
    se, weight = math.sqrt(total), of.own / total if total else 0.0

    def k(tail: float) -> float:
        own, shared, both = (
            -float(special.stdtrit(min(v, 1e9), tail)) for v in (of.own_df, of.shared_df, df)
        )
        return (2 * (weight * own + (1 - weight) * shared) + both) / 3

    half, p = 0.0, float(of.estimate == 0)
    if se:
        half = k((1 - level) / 2) * se
        z = abs(of.estimate) / se
        p = 2 * float(optimize.brentq(lambda t: k(t) - z, 1e-12, 0.5)) if k(1e-12) > z else 0.0
    return Interval(
        of.estimate,
        of.estimate - half,
        of.estimate + half,
        level,
        population,
        method,
        of.n_seeds,
        of.n_groups,
        p,
        df,
        n_datasets,
    )


def _sum(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The sum of estimated variances, and its degrees of freedom after Satterthwaite."""
    total = sum(variance for variance, _ in parts)
    share = sum(variance**2 / df for variance, df in parts)
    return total, total**2 / share if share > 0 else math.inf


def datasets_bootstrap(
    values: Floats, level: float = LEVEL, draws: int = 10_000, seed: int = 0
) -> Interval:
    """For new datasets like these: hierarchical bootstrap of D numbers (D,), one a dataset, its
    seeds averaged.

    Only the top level is drawn: the spread between datasets already holds that of their seeds and
    images, and drawing these again would count it twice (Davison and Hinkley 1997, section 3.8).
    Levels widened for small D as in `images_interval`. StatsError for D < 8.
    """
    d = len(values)
    if d < MIN_DATASETS:
        raise StatsError(
            f"{d} dataset{'s' * (d != 1)} cannot represent others: a bootstrap over datasets "
            f"needs at least {MIN_DATASETS}"
        )
    rng = np.random.default_rng([seed, d])
    drawn = np.sort(values[rng.integers(0, d, (draws, d))].mean(1))
    tail = _expanded((1 - level) / 2, d)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    p = _percentile_p(drawn, d)
    return Interval(
        float(values.mean()),
        float(low),
        float(high),
        level,
        "datasets",
        "hierarchical bootstrap over datasets",
        0,
        0,
        p,
        None,
        d,
    )


def _expanded(tail: float, n: int) -> float:
    """The tail of a percentile interval over n units that acts as a t interval would."""
    from scipy import stats

    return float(stats.norm.cdf(math.sqrt(n / (n - 1)) * stats.t.ppf(tail, n - 1)))


def _percentile_p(drawn: Floats, n: int) -> float:
    """The p value of 0 that agrees with the expanded percentile interval of sorted draws."""
    place = np.linspace(0, 1, len(drawn))

    def upto(values: Floats) -> float:
        """The largest share q of the draws whose q-quantile is 0 or less."""
        k = int(np.searchsorted(values, 0, side="right"))
        if k == 0 or k == len(values):
            return float(k > 0)
        step = -values[k - 1] / (values[k] - values[k - 1])
        return float(place[k - 1] + step * (place[k] - place[k - 1]))

    # No draw beyond 0 says no more than that the share is below one in all the draws.
    tail = max(min(upto(drawn), upto(-drawn[::-1])), 1 / (len(drawn) + 1))
    return min(1.0, 2 * _shrunk(min(tail, 0.5), n))


def _shrunk(tail: float, n: int) -> float:
    """The inverse of `_expanded`."""
    from scipy import stats

    return float(stats.t.cdf(math.sqrt((n - 1) / n) * stats.norm.ppf(tail), n - 1))


_UNDEFINED = (
    "the metric is undefined on some resamples of the test images, because a class is rare or "
    "absent there; more test images of each class are needed, or a metric such as accuracy"
)


def _enough_groups(n: int) -> None:
    if n < MIN_GROUPS:
        raise StatsError(
            f"{n} independent test units (images, or patients where the data name them) are too "
            f"few for an interval over test images: at least {MIN_GROUPS} are needed"
        )


def _enough_seeds(r: int, needed: int) -> None:
    if r < needed:
        raise StatsError(
            f"{r} seed{'s' * (r != 1)} cannot show the spread over support sets: at least "
            f"{needed} seeds are needed (--seeds)"
        )
