"""Do vipbench's intervals cover, and do its tests err as often as they say?

Simulated results with known truth: test images of patients, several seeds with support sets of
their own, two methods on the same seeds and images. Whether method m with seed s has image i of
patient g right follows a probit model with random effects of seed, patient and image, some shared
by the methods and some their own:

    P(right) = Phi(mu + a_s + a_ms + b_g + b_mg + c_i),   all effects normal

    python benchmarks/stats_simulation.py                  # 2,000 repetitions, a few minutes
    python benchmarks/stats_simulation.py --repetitions 200
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, ttest_1samp

from vipbench.results import stats
from vipbench.results.stats import StatsError, TestSet

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class World:
    """One design. sd_*: of the random effects on the probit scale, of both methods together and of
    each method alone (own_*)."""

    name: str
    seeds: int = 3
    patients: int = 150
    images: int = 2
    mu: float = 0.8
    sd_seed: float = 0.10
    own_seed: float = 0.10
    sd_patient: float = 0.5
    own_patient: float = 0.3
    sd_image: float = 0.5

    def draw(self, rng: np.random.Generator, shift: float = 0.0) -> Drawn:
        """One experiment; method 0 is better by `shift`, the other worse, on the probit scale."""
        n = self.patients * self.images
        group = np.repeat(np.arange(self.patients), self.images)
        seed = rng.normal(0, self.sd_seed, (1, self.seeds)) + rng.normal(
            0, self.own_seed, (2, self.seeds)
        )
        patient = rng.normal(0, self.sd_patient, self.patients)
        own = rng.normal(0, self.own_patient, (2, self.patients))
        image = patient[group] + own[:, group] + rng.normal(0, self.sd_image, n)
        mean = self.mu + np.array([shift, -shift])
        latent = mean[:, None, None] + seed[:, :, None] + image[:, None, :]
        # (2, seeds, images): positive where the method is right.
        margin = latent + rng.normal(0, 1, latent.shape)
        over_images = self.sd_patient**2 + self.own_patient**2 + self.sd_image**2
        over_seeds = self.sd_seed**2 + self.own_seed**2
        truth = {
            "both": norm.cdf(mean / np.sqrt(1 + over_images + over_seeds)),
            "images": norm.cdf((mean[:, None] + seed) / np.sqrt(1 + over_images)).mean(1),
            "seeds": norm.cdf((mean[:, None] + image) / np.sqrt(1 + over_seeds)).mean(1),
        }
        return Drawn(self, group, margin, truth)


@dataclass(frozen=True)
class Drawn:
    """One experiment: margins (2, R, N) and the true accuracies (2,) by population."""

    world: World
    group: NDArray[np.int64]
    margin: Floats
    truth: dict[str, Floats]

    def replicates(self) -> tuple[Floats, Floats]:
        """Accuracies (2, R) and their bootstrap replicates (B, 2, R)."""
        n = len(self.group)
        labels = np.arange(n) % 2
        groups = [str(g) for g in self.group] if self.world.images > 1 else None
        tests = TestSet.of(labels, groups, ["a", "b"])
        sign = np.where(labels == 0, 1.0, -1.0)
        scores = [np.stack([m * sign, -m * sign], 1) for m in self.margin.reshape(-1, n)]
        values, reps = stats.replicates("accuracy", tests, scores)
        shape = self.margin.shape[:2]
        return values.reshape(shape), reps.reshape(len(reps), *shape)


WORLDS = (
    World("3 seeds, 150 patients x 2"),
    World("3 seeds, 300 images", patients=300, images=1),
    World("3 seeds, strong seed effect", sd_seed=0.2, own_seed=0.2),
    World("3 seeds, extreme seed effect", sd_seed=0.3, own_seed=0.3),
    World("3 seeds, no seed effect", sd_seed=0.0, own_seed=0.0),
    World("3 seeds, 40 patients x 8", patients=40, images=8, own_patient=0.5),
    World("5 seeds, 150 patients x 2", seeds=5),
    World("10 seeds, 150 patients x 2", seeds=10),
    World("20 seeds, 1000 images", seeds=20, patients=1000, images=1),
)


def within_a_dataset(world: World, repetitions: int, rng: np.random.Generator) -> dict[str, Any]:
    """Coverage of one method's and of the difference's interval by population, the false positives
    of the difference, and those of pooling what is dependent."""
    covered: dict[str, list[bool]] = {
        f"{what} {population}": []
        for what in ("accuracy", "difference")
        for population in ("images", "seeds", "both")
    }
    false, pooled = [], []
    for _ in range(repetitions):
        drawn = world.draw(rng)
        values, reps = drawn.replicates()
        for what in ("accuracy", "difference"):
            v, r = values[0], reps[:, 0]
            if what == "difference":
                v, r = values[0] - values[1], reps[:, 0] - reps[:, 1]
            g = world.patients
            found = {
                "images": stats.images_interval(v, r, g),
                "seeds": stats.seeds_interval(v, g),
                "both": stats.both_interval(v, r, g),
            }
            for name, interval in found.items():
                true = drawn.truth[name]
                target = true[0] if what == "accuracy" else true[0] - true[1]
                covered[f"{what} {name}"].append(interval.low <= target <= interval.high)
            if what == "difference":
                false.append(found["both"].p < 0.05)
        each = ((drawn.margin[0] > 0) * 1.0 - (drawn.margin[1] > 0)).ravel()
        pooled.append(ttest_1samp(each, 0).pvalue < 0.05)
    rates = {name: float(np.mean(hits)) for name, hits in covered.items()}
    return rates | {"false positives": float(np.mean(false)), "pooled": float(np.mean(pooled))}


def one_pair(repetitions: int, rng: np.random.Generator) -> float:
    """False positives of McNemar's mid-p test of one trained model against another."""
    world = World("", seeds=1, patients=300, images=1, sd_seed=0, own_seed=0)
    false = 0
    for _ in range(repetitions):
        right = world.draw(rng).margin[:, 0] > 0
        try:
            false += stats.mcnemar(right[0], right[1])[2] < 0.05
        except StatsError:
            continue
    return false / repetitions


def over_datasets(
    datasets: int, seeds: int, repetitions: int, rng: np.random.Generator
) -> dict[str, float]:
    """Two methods that are equal on average over datasets, each better on some of them."""
    hits: dict[str, list[bool]] = {}
    for _ in range(repetitions):
        parts, differences, single, true = [], [], [], []
        for _ in range(datasets):
            world = World("", seeds=seeds, mu=rng.uniform(0.3, 1.5), patients=100)
            drawn = world.draw(rng, shift=rng.normal(0, 0.15))
            values, reps = drawn.replicates()
            v = values[0] - values[1]
            parts.append(stats.both_variance(v, reps[:, 0] - reps[:, 1], world.patients))
            differences.append(v.mean())
            single.extend(v)
            true.append(drawn.truth["both"][0] - drawn.truth["both"][1])
        here = stats.pooled(parts)
        hits.setdefault("coverage, these datasets", []).append(
            here.low <= np.mean(true) <= here.high
        )
        d = np.array(differences)
        if datasets >= 6 and np.count_nonzero(d) >= 6:
            test = stats.wilcoxon(d)
            hits.setdefault("coverage, Hodges-Lehmann", []).append(test.low <= 0 <= test.high)
            hits.setdefault("false positives, Wilcoxon", []).append(test.p < 0.05)
        if datasets >= 8:
            boot = stats.datasets_bootstrap(d)
            hits.setdefault("coverage, bootstrap over datasets", []).append(
                boot.low <= 0 <= boot.high
            )
        hits.setdefault("false positives, datasets x seeds pooled", []).append(
            ttest_1samp(single, 0).pvalue < 0.05
        )
    return {name: float(np.mean(found)) for name, found in hits.items()}


def ranks(repetitions: int, rng: np.random.Generator, datasets: int = 10, k: int = 5) -> float:
    """How often Nemenyi's critical difference parts any two of k equal methods."""
    false = 0
    for _ in range(repetitions):
        found = stats.average_ranks([str(i) for i in range(k)], rng.normal(size=(datasets, k)))
        false += max(found.ranks) - min(found.ranks) >= found.critical_difference
    return false / repetitions


def report(repetitions: int, seed: int) -> Iterator[str]:
    """The lines of docs/statistics.md's tables."""
    rng = np.random.default_rng(seed)
    yield f"{repetitions} repetitions, seed {seed}; in per cent"
    yield ""
    columns = [
        *(f"accuracy {p}" for p in ("images", "seeds", "both")),
        *(f"difference {p}" for p in ("images", "seeds", "both")),
        *("false positives", "pooled"),
    ]
    heads = [c.replace("accuracy", "acc.").replace("difference", "diff.") for c in columns]
    yield f"| one dataset | {' | '.join(heads)} |"
    yield f"|---|{'---:|' * len(columns)}"
    for world in WORLDS:
        found = within_a_dataset(world, repetitions, rng)
        yield f"| {world.name} | {' | '.join(f'{100 * found[c]:.1f}' for c in columns)} |"
    yield ""
    yield "| over datasets | rate |"
    yield "|---|---:|"
    for datasets, seeds in ((3, 3), (6, 3), (8, 3), (10, 3), (11, 5)):
        for name, rate in over_datasets(datasets, seeds, repetitions, rng).items():
            yield f"| {datasets} datasets, {seeds} seeds: {name} | {100 * rate:.1f} |"
    others: dict[str, Callable[[int, np.random.Generator], float]] = {
        "one pair of models, 300 images: false positives, McNemar mid-p": one_pair,
        "10 datasets, 5 methods: any two parted, Nemenyi": ranks,
    }
    for name, of in others.items():
        yield f"| {name} | {100 * of(repetitions, rng):.1f} |"


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    for line in report(given.repetitions, given.seed):
        print(line)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
