"""The simulation of benchmarks/stats_simulation.py in a shortened form: the intervals cover, and
the tests err, about as often as they say."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vipbench.results import stats


@pytest.fixture(scope="module")
def simulation(repo: Path) -> dict[str, Any]:
    return runpy.run_path(str(repo / "benchmarks" / "stats_simulation.py"))


# Of 300 repetitions at 95 %, the share lies within these bounds in 99.9 of 100 runs.
LOW, HIGH = 0.905, 0.99


@pytest.mark.parametrize("number", [0, 2])
def test_coverage_within_a_dataset(simulation: dict[str, Any], number: int) -> None:
    world = simulation["WORLDS"][number]
    rng = np.random.default_rng(7)
    found = simulation["within_a_dataset"](world, 300, rng)
    for name, rate in found.items():
        if name.startswith(("accuracy", "difference")):
            assert LOW <= rate <= HIGH, name
    assert 1 - HIGH <= found["false positives"] <= 1 - LOW
    assert found["pooled"] > 0.15  # what the other is there to prevent


def test_errors_over_datasets(simulation: dict[str, Any]) -> None:
    found = simulation["over_datasets"](10, 3, 60, np.random.default_rng(7))
    assert found["false positives, Wilcoxon"] <= 0.15
    assert found["coverage, these datasets"] >= 0.85


def test_errors_of_mcnemar(simulation: dict[str, Any]) -> None:
    assert 0.01 <= simulation["one_pair"](300, np.random.default_rng(7)) <= 0.095


def test_a_percentile_interval_over_ten_patients_covers_because_it_is_widened() -> None:
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(400):
        right = rng.normal(0.7, 0.1, 10)
        reps = right[rng.integers(0, 10, (2000, 10))].mean(1)[:, None]
        found = stats.images_interval(right.mean()[None], reps, 10)
        hits.append(found.low <= 0.7 <= found.high)
    assert LOW <= np.mean(hits) <= HIGH
