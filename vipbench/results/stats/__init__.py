"""Statistics over records: intervals, tests, ranks; docs/statistics.md says which and why."""

from __future__ import annotations

from vipbench.results.stats.bootstrap import DRAWS, TestSet, replicates, weighted_metric
from vipbench.results.stats.hypotheses import (
    Ranks,
    average_ranks,
    holm,
    mcnemar,
    smallest_wilcoxon_p,
    wilcoxon,
)
from vipbench.results.stats.intervals import (
    LEVEL,
    POPULATIONS,
    Interval,
    StatsError,
    Variance,
    both_interval,
    both_variance,
    datasets_bootstrap,
    images_interval,
    pooled,
    seeds_interval,
)

__all__ = [
    "DRAWS",
    "LEVEL",
    "POPULATIONS",
    "Interval",
    "Ranks",
    "StatsError",
    "TestSet",
    "Variance",
    "average_ranks",
    "both_interval",
    "both_variance",
    "datasets_bootstrap",
    "holm",
    "images_interval",
    "mcnemar",
    "pooled",
    "replicates",
    "seeds_interval",
    "smallest_wilcoxon_p",
    "weighted_metric",
    "wilcoxon",
]
