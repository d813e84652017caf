"""Tuning: which settings of a method are tried, and which of them is best on validation.

Trial 1 of every method is its settings as given; the others are drawn from the ranges that its
HParams name (`tunes`), by a Halton sequence, so that more trials only add to fewer. Trials are
ordinary cells that are scored on validation images (`RunSpec.score_on`); inside a trial no method
sees those images, so that each of them has the same number of looks at them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vipbench.errors import UsageError, unknown
from vipbench.results import Record
from vipbench.runspec.methods import MethodSpec
from vipbench.runspec.values import scalar, split
from vipbench.runspec.yaml import Scalar, format_scalar

Space = Mapping[str, Mapping[str, Any]]
# So many draws are looked at for each new setting before a space counts as used up.
PATIENCE = 50


@dataclass(frozen=True)
class Trial:
    """Settings of a row under trial, as a row of their own. number: from 1."""

    number: int
    spec: MethodSpec
    changes: Mapping[str, Scalar]

    @property
    def settings_text(self) -> str:
        """The settings, as a person reads them."""
        if not self.changes:
            return "as given"
        return ", ".join(f"{name}={format_scalar(v)}" for name, v in self.changes.items())


@dataclass(frozen=True)
class Searched:
    """A row with its trials. space: what is searched, empty where nothing is: then there are no
    trials."""

    row: MethodSpec
    space: Space
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Score:
    """What a trial came to. mean: of the metric over all its cells, None where one of them has no
    number; sd: over seeds, of each seed's mean; None for one seed. cells: how many have a number,
    planned: how many there should be."""

    trial: Trial
    mean: float | None
    sd: float | None
    cells: int
    planned: int


@dataclass(frozen=True)
class Tuned:
    """A row's scores in the order of its trials; best: the first of the highest, None without
    any."""

    searched: Searched
    scores: tuple[Score, ...] = ()
    best: Score | None = field(default=None)


def searched(
    row: MethodSpec, space: Space, defaults: Mapping[str, Scalar], trials: int, seed: int
) -> Searched:
    """The row's trials: `trials` of them, fewer where its space has no more settings. What the row
    sets itself is not searched. defaults: of the method, hyperparameter -> value."""
    free = {name: where for name, where in space.items() if name not in row.hparams}
    if not free:
        return Searched(row, {}, ())
    found: list[dict[str, Scalar]] = [{}]
    given = {name: defaults.get(name) for name in free}
    for point in _points(len(free), seed, row.plain, PATIENCE * trials):
        if len(found) == trials:
            break
        changes = {
            name: _value(where, u) for (name, where), u in zip(free.items(), point, strict=True)
        }
        if changes != given and changes not in found:
            found.append(changes)
    made = (row.with_hparams(changes) if changes else row for changes in found)
    numbered = enumerate(zip(made, found, strict=True), 1)
    return Searched(row, free, tuple(Trial(i, spec, changes) for i, (spec, changes) in numbered))


def _points(dims: int, seed: int, name: str, count: int) -> Iterable[list[float]]:
    """Points of [0,1)^dims that fill it evenly, however many are taken."""
    from scipy.stats import qmc

    rng = np.random.Generator(_seeded_bits("tune", seed, name))
    points: list[list[float]] = qmc.Halton(dims, rng=rng).random(count).tolist()
    return points


def _seeded_bits(*key: str | int) -> np.random.PCG64:
    """A bit generator that depends on `key` alone."""
    digest = hashlib.sha256()
    for part in key:
        data = str(part).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return np.random.PCG64(int.from_bytes(digest.digest(), "little"))


def _value(where: Mapping[str, Any], u: float) -> Scalar:
    if "values" in where:
        values: Sequence[Scalar] = where["values"]
        return values[min(int(u * len(values)), len(values) - 1)]
    low, high = float(where["low"]), float(where["high"])
    if where["whole"]:
        high = high + 1  # both ends are included
    if where["log"]:
        value = math.exp(math.log(low) + u * (math.log(high) - math.log(low)))
    else:
        value = low + u * (high - low)
    if where["whole"]:
        return min(int(value), int(where["high"]))
    return min(max(float(f"{value:.3g}"), low), high)


def with_ranges(spaces: dict[str, dict[str, Any]], flags: Sequence[str]) -> None:
    """Put the ranges of `METHOD.HPARAM=LOW..HIGH` or `=A|B|C` in their places. LOW..HIGH is
    searched in logarithms where HIGH is a hundred times LOW or more. Raises UsageError."""
    for flag in flags:
        left, equals, value = flag.partition("=")
        method, dot, hparam = left.strip().rpartition(".")
        if not (equals and dot and method and hparam and value.strip()):
            raise UsageError(
                f"--range takes METHOD.HPARAM=LOW..HIGH or METHOD.HPARAM=A|B|C, got '{flag}'"
            )
        if method not in spaces:
            raise unknown("method", method, spaces)
        kinds = spaces[method]["hparams"]
        if hparam not in kinds:
            raise unknown(f"hyperparameter of '{method}'", hparam, kinds)
        spaces[method]["tunes"][hparam] = _range(flag, value.strip(), kinds[hparam]["type"])


def _range(flag: str, value: str, kind: str) -> dict[str, Any]:
    low, dots, high = value.partition("..")
    if not dots:
        values = [scalar(part, flag) for part in split(value, "|")]
        if len(values) < 2:
            raise UsageError(f"--range {flag}: expected two or more values; --set sets one")
        return {"values": values}
    try:
        ends = float(low), float(high)
    except ValueError:
        raise UsageError(f"--range {flag}: expected two numbers around '..'") from None
    if not (math.isfinite(ends[0]) and math.isfinite(ends[1]) and ends[0] < ends[1]):
        raise UsageError(f"--range {flag}: the second number must be the higher one")
    whole = "int" in kind and "float" not in kind
    log = ends[0] > 0 and ends[1] / ends[0] >= 100
    return {"low": ends[0], "high": ends[1], "log": log, "whole": whole}


def judged(
    row: Searched, keys: Mapping[str, Sequence[str]], records: Mapping[str, Record], metric: str
) -> Tuned:
    """Scores of a row's trials. keys: trial's label -> the keys of its cells."""
    scores = []
    for trial in row.trials:
        own = keys.get(trial.spec.label, ())
        found: dict[int, list[float]] = {}
        for key in own:
            record = records.get(key)
            value = None if record is None else record.metrics.get(metric)
            if record is not None and isinstance(value, float):
                found.setdefault(record.cell.seed, []).append(value)
        values = [value for part in found.values() for value in part]
        means = [math.fsum(part) / len(part) for part in found.values()]
        whole = bool(own) and len(values) == len(own)
        scores.append(
            Score(
                trial,
                math.fsum(values) / len(values) if whole else None,
                float(np.std(means, ddof=1)) if whole and len(means) > 1 else None,
                len(values),
                len(own),
            )
        )
    best: Score | None = None
    for score in scores:
        if score.mean is not None and (
            best is None or best.mean is None or score.mean > best.mean + 1e-12
        ):
            best = score
    return Tuned(row, tuple(scores), best)
