"""Making stored cells again, and how close what comes out is. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vipbench.engine import driver
from vipbench.engine.outcome import Observer
from vipbench.errors import UsageError
from vipbench.results.commands import is_quick, scalars
from vipbench.results.predictions import Predictions
from vipbench.results.privacy import public_source
from vipbench.results.record import Record
from vipbench.results.store import Store
from vipbench.spec import MethodSpec, RunSpec

# Of the largest stored score: other devices and libraries sum in other orders, and training
# lets the differences grow.
TOLERANCE = 1e-3
Verdict = Literal["identical", "within the tolerance", "different", "not made again"]
VERDICTS: tuple[Verdict, ...] = (
    "identical",
    "within the tolerance",
    "different",
    "not made again",
)


@dataclass(frozen=True)
class Rerun:
    """What came of one cell. largest: the largest difference of a score, relative to the largest
    stored score. reason: why it was not made again."""

    record: Record
    verdict: Verdict
    largest: float = 0.0
    reason: str = ""


def rerun(
    stored: Iterable[tuple[Record, Predictions | None]],
    suite: RunSpec,
    out: Path,
    tolerance: float = TOLERANCE,
    observer: Observer | None = None,
) -> list[Rerun]:
    """Run the records' cells anew into the empty folder `out`, and compare.

    suite: where datasets, symptoms and plugins are; the rest is taken from the records. Raises
    UsageError where a whole row cannot be planned for a reason that is not the row's own.
    """
    rows: dict[str, list[tuple[Record, Predictions | None]]] = {}
    for record, predictions in stored:
        spec = spec_of(record, suite, out)
        rows.setdefault(spec.to_yaml(), []).append((record, predictions))
    found: list[Rerun] = []
    for pairs in rows.values():
        seeds = tuple(dict.fromkeys(record.cell.seed for record, _ in pairs))
        spec = spec_of(pairs[0][0], suite, out).model_copy(update={"seeds": seeds})
        reason = ""
        try:
            outcome = driver.run(spec, observer)
        except UsageError as error:
            reason = str(error)
        else:
            if outcome.interrupted:
                raise KeyboardInterrupt
        found += [_compare(record, p, out, tolerance, reason) for record, p in pairs]
    return found


def spec_of(record: Record, suite: RunSpec, out: Path) -> RunSpec:
    """The run of the record's row at its shots, on every dataset of `suite` that may be the
    record's. The seeds are left to the caller."""
    c, p = record.cell, record.protocol
    known = {method.label: method for method in suite.methods}
    method = known.get(c.method)
    if method is None or method.name != c.method_name:
        plain = c.method == c.method_name
        hparams = {} if plain else scalars(record.hparams)
        method = MethodSpec(name=c.method_name, hparams=hparams, label=c.method)
    datasets = _datasets(record, suite)
    values: dict[str, Any] = {
        "methods": [method],
        "datasets": datasets,
        "backbones": _backbones(record, suite),
        "shots": [c.shots] if c.shots != 0 else [1],
        "seeds": [1],
        **{k: getattr(p, k) for k in ("precision", "shots_unit")},
        "profile": "quick" if is_quick(record) else "matched",
    }
    if c.shots != 0:
        values |= {k: getattr(p, k) for k in ("views", "sampler", "validation", "selection")}
    symptoms = {
        name: file for name, file in suite.symptoms.items() if name in ("*", c.dataset, *datasets)
    }
    kept: dict[str, Any] = {
        key: getattr(suite, key)
        for key in ("data_root", "plugins_dir", "device", "cell_timeout")
        if key in suite.model_fields_set
    }
    return RunSpec.parse({**kept, **values, "symptoms": symptoms, "out": out})


def _backbones(record: Record, suite: RunSpec) -> list[str]:
    """The record's backbone as the suite asks for it; a local checkpoint's name is not what asks
    for it, so that all that could be meant are tried."""
    name = record.cell.backbone
    if name in suite.backbones or "@" not in name:
        return [name]
    return [b for b in suite.backbones if b.startswith(name.partition("@")[0])] or [name]


def _datasets(record: Record, suite: RunSpec) -> list[str]:
    part = record.provenance.get("dataset")
    source = part.get("source") if isinstance(part, Mapping) else None
    if not isinstance(source, str):
        source = record.cell.dataset
    fitting = [d for d in suite.datasets if public_source(d, suite.data_root) == source]
    return fitting or [source]


def _compare(
    record: Record, stored: Predictions | None, out: Path, tolerance: float, reason: str
) -> Rerun:
    if not (out / "results.sqlite").exists():
        return Rerun(record, "not made again", reason=reason or "nothing was run")
    with Store(out, readonly=True) as store:
        made = store.record(record.key)
        predictions = store.predictions(record.key) if made is not None else None
        others = [r for r in store.records(history=False) if r.slot == record.slot]
    if made is None:
        return Rerun(record, "not made again", reason=reason or _why(record, others))
    if made.error is not None:
        return Rerun(record, "not made again", reason=f"it failed: {made.error.message}")
    if stored is None or predictions is None:
        same = record.metrics == made.metrics
        return Rerun(record, "identical" if same else "different")
    return _judge(record, stored, predictions, tolerance)


def _judge(record: Record, stored: Predictions, made: Predictions, tolerance: float) -> Rerun:
    if stored.scores.shape != made.scores.shape or (stored.labels != made.labels).any():
        return Rerun(record, "different", float("inf"))
    if np.array_equal(stored.scores, made.scores):
        return Rerun(record, "identical")
    scale = max(float(np.abs(stored.scores).max()), 1e-12)
    largest = float(np.abs(stored.scores - made.scores).max()) / scale
    return Rerun(record, "within the tolerance" if largest <= tolerance else "different", largest)


def _why(record: Record, others: Sequence[Record]) -> str:
    """What keeps the record's key from being made here, as far as the records tell."""
    if not others:
        return "no cell of its place in the grid could be run here"
    mine, theirs = (r.provenance.get("key_parts") for r in (record, others[0]))
    if not isinstance(mine, dict) or not isinstance(theirs, dict):
        return "its key is another one here"
    changed = [k for k in dict.fromkeys([*mine, *theirs]) if mine.get(k) != theirs.get(k)]
    return f"its key is another one here, since these differ: {', '.join(changed)}"
