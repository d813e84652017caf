"""Reruns stored cells and measures how far the results differ."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vipbench.engine.kept import CACHE_VARIABLE
from vipbench.engine.workers import driver
from vipbench.engine.workers.messages import Plan
from vipbench.engine.workers.plan import Observer
from vipbench.errors import UsageError
from vipbench.results.records.plan import PlannedCell
from vipbench.results.records.predictions import Predictions
from vipbench.results.records.protocol_names import place_of, split_fold
from vipbench.results.records.record import Record
from vipbench.results.records.rerun_command import (
    is_quick,
    knowledge,
    own_label,
    scalars,
    text_sets,
)
from vipbench.results.sharing.privacy import public_source
from vipbench.results.store.store import Store
from vipbench.runspec.run import PATHS_BY_DATASET, MethodSpec, RunSpec
from vipbench.runspec.text_sets import split_key
from vipbench.runspec.values import dataset_keys, labelled

# Of the largest stored score: other devices and libraries sum in other orders, and training
# lets the differences grow.
TOLERANCE = 1e-3
Stored = tuple[Record, Predictions | None]
Verdict = Literal["identical", "within the tolerance", "different", "not rerun"]
VERDICTS: tuple[Verdict, ...] = (
    "identical",
    "within the tolerance",
    "different",
    "not rerun",
)


@dataclass(frozen=True)
class Rerun:
    """The rerun of one cell. largest: the largest difference of a score, relative to the largest
    stored score. reason: why it was not rerun."""

    record: Record
    verdict: Verdict
    largest: float = 0.0
    reason: str = ""


def rerun(
    stored: Iterable[Stored],
    suite: RunSpec,
    out: Path,
    tolerance: float = TOLERANCE,
) -> list[Rerun]:
    """Rerun the records' cells into the empty folder `out`, and compare. All features are encoded
    again: wrong features in the cache may be the cause of wrong stored numbers.

    suite: where datasets, symptoms and plugins are; the rest is taken from the records. Raises
    UsageError where a whole row cannot be planned for a reason that is not the row's own.
    """
    found: list[Rerun] = []
    for spec, pairs in runs(list(stored), suite, out):
        seen = _PlanKeeper()
        reason = ""
        try:
            with _empty_cache():
                outcome = driver.run(spec, seen, only={record.key for record, _ in pairs})
        except UsageError as error:
            reason = str(error)
        else:
            if outcome.interrupted:
                raise KeyboardInterrupt
            reason = "; ".join(seen.broken)
        found += compare(pairs, out, tolerance, reason, seen.cells)
    return found


@contextmanager
def _empty_cache() -> Iterator[None]:
    """A feature cache for this process and the workers that it starts meanwhile."""
    before = os.environ.get(CACHE_VARIABLE)
    with tempfile.TemporaryDirectory(prefix="vipbench-cache-") as folder:
        os.environ[CACHE_VARIABLE] = folder
        try:
            yield
        finally:
            os.environ.pop(CACHE_VARIABLE)
            if before is not None:
                os.environ[CACHE_VARIABLE] = before


class _PlanKeeper(Observer):
    """Keeps the plan: it tells why a key is none of it."""

    def __init__(self) -> None:
        self.cells: dict[Any, list[PlannedCell]] = {}
        self.broken: list[str] = []

    def planned(self, plan: Plan) -> None:
        """See Observer."""
        self.broken = plan.broken
        for cell in plan.cells:
            self.cells.setdefault(cell.slot, []).append(cell)


def runs(stored: Sequence[Stored], suite: RunSpec, out: Path) -> list[tuple[RunSpec, list[Stored]]]:
    """The fewest runs that make all of the cells: one for every protocol. A cell without a support
    set fits any that agrees in the rest."""
    found: list[tuple[RunSpec, list[Stored]]] = []
    for pair in sorted(stored, key=lambda pair: pair[0].cell.shots == 0):
        spec = spec_of(pair[0], suite, out)
        for place, (other, pairs) in enumerate(found):
            if _can_share_run(other, spec, with_support=pair[0].cell.shots != 0):
                found[place] = (_merged(other, spec), [*pairs, pair])
                break
        else:
            found.append((spec, [pair]))
    return found


def _can_share_run(a: RunSpec, b: RunSpec, with_support: bool) -> bool:
    """Whether one run can be both: the same settings, sets of the same kinds of texts, and no label
    for two methods."""
    left_out = GRID if with_support else (*GRID, *OF_SUPPORT)
    same = all(getattr(a, k) == getattr(b, k) for k in RunSpec.model_fields if k not in left_out)
    same = same and a.labels.keys() == b.labels.keys()
    labels = {method.label: method for method in a.methods}
    return same and all(labels.get(method.label, method) == method for method in b.methods)


GRID = ("methods", "datasets", "backbones", "shots", "seeds", "knowledge", *PATHS_BY_DATASET)
OF_SUPPORT = ("views", "sampler", "validation", "selection", "shots_unit")


def _merged(a: RunSpec, b: RunSpec) -> RunSpec:
    found: dict[str, Any] = {}
    for name in ("methods", "datasets", "backbones", "shots", "seeds", "knowledge"):
        mine = getattr(a, name)
        found[name] = (*mine, *(value for value in getattr(b, name) if value not in mine))
    for name in PATHS_BY_DATASET:
        found[name] = {**getattr(b, name), **getattr(a, name)}
    return a.model_copy(update=found)


def compare(
    stored: Iterable[Stored],
    out: Path,
    tolerance: float = TOLERANCE,
    reason: str = "",
    planned: Mapping[Any, Sequence[PlannedCell]] | None = None,
) -> list[Rerun]:
    """What `out` holds of the same cells, against what is stored. reason: why nothing was run.
    planned: what a plan had at the cells' places; without it, the records of `out` tell."""
    if not (out / "results.sqlite").exists():
        why = reason or "nothing was run"
        return [Rerun(record, "not rerun", reason=why) for record, _ in stored]
    with Store(out, readonly=True) as store:
        there: dict[Any, list[Record]] = {}
        for made in store.records(history=False):
            there.setdefault(made.slot, []).append(made)
        found_again = []
        for record, p in stored:
            others = _known_reasons(record, (planned or {}).get(record.slot, ()), there)
            found_again.append(_compare(record, p, store, others, tolerance, reason))
        return found_again


def _known_reasons(
    record: Record, cells: Sequence[PlannedCell], there: Mapping[Any, Sequence[Record]]
) -> list[str | Mapping[str, Any]]:
    """Of each cell at the record's place: why it cannot be, or of what its key is made."""
    parts = (r.provenance.get("key_parts") or {} for r in there.get(record.slot, ()))
    impossible = [c.reason for c in cells if c.status == "impossible" and c.reason]
    return [*impossible, *(c.parts for c in cells), *parts]


def spec_of(record: Record, suite: RunSpec, out: Path) -> RunSpec:
    """The run that makes the record's cell, on every dataset of `suite` that may be
    the record's."""
    c, p = record.cell, record.protocol
    known = {method.label: method for method in suite.methods}
    label = own_label(record)
    method = known.get(label)
    if method is None or method.name != c.method_name:
        hparams = {} if label == c.method_name else scalars(record.hparams)
        method = MethodSpec(name=c.method_name, hparams=hparams, label=label)
    protocol = _protocol(record, suite)
    datasets = protocol.pop("datasets", None) or _datasets(record, suite)
    values: dict[str, Any] = {
        "methods": [method],
        "datasets": datasets,
        "backbones": _backbones(record, suite),
        "shots": [c.shots] if c.shots != 0 else [1],
        "seeds": [c.seed] if c.shots != 0 or c.seed != 0 else [1],
        **protocol,
        **{k: getattr(p, k) for k in ("precision", "shots_unit")},
        "feature_precision": getattr(p, "feature_precision", "fp32"),
        "knowledge": [knowledge(record)],
        "profile": "quick" if is_quick(record) else "matched",
        "score_on": getattr(p, "score_on", "test"),
    }
    if c.shots != 0:
        values |= {k: getattr(p, k) for k in ("views", "sampler", "validation", "selection")}
    named = {*dataset_keys(datasets), split_fold(c.dataset)[0]}
    sets = ("", *text_sets(record).values())
    paths = {
        key: {
            k: v
            for k, v in getattr(suite, key).items()
            for label, dataset in [split_key(k)]
            if label in sets and dataset in named
        }
        for key in PATHS_BY_DATASET
    }
    kept: dict[str, Any] = {
        key: getattr(suite, key)
        for key in ("data_root", "plugins_dir", "device", "cell_timeout", "allow_group_overlap")
        if key in suite.model_fields_set
    }
    return RunSpec.parse({**kept, **values, **paths, "out": out})


def _backbones(record: Record, suite: RunSpec) -> list[str]:
    """The record's backbone as the suite asks for it; a local checkpoint's name (`openclip:ARCH@…`,
    `transformers:KIND@…`) is not what asks for it, so that all that could be meant are tried."""
    name = record.cell.backbone
    if named := [b for b in suite.backbones if labelled(b)[0] == name]:
        return named
    if name in suite.backbones or "@" not in name:
        return [name]
    architecture, family = name.partition("@")[0], f"{name.partition(':')[0]}:"
    found = [b for b in suite.backbones if b.startswith(architecture)]
    return found or [b for b in suite.backbones if b.startswith(family)] or [name]


def _protocol(record: Record, suite: RunSpec) -> dict[str, Any]:
    """The record's protocol and, where it is trained on one dataset and tested on another, both."""
    place = place_of(record)
    if not place or "target" not in place:
        return {"protocol": place["name"]} if place else {}
    if suite.protocol.name == place["name"]:
        return {"protocol": suite.protocol, "datasets": list(suite.datasets)}
    given = str(place.get("source_given") or place["source"])
    fitting = [d for d in suite.datasets if public_source(d, suite.data_root) == given]
    source, targets = (fitting or [given])[0], _datasets(record, suite)
    protocol: dict[str, Any] = {"name": place["name"], "source": source}
    if place.get("classes"):
        protocol["classes"] = {target: place["classes"] for target in targets if target != source}
    return {"protocol": protocol, "datasets": list(dict.fromkeys([source, *targets]))}


def _datasets(record: Record, suite: RunSpec) -> list[str]:
    part = record.provenance.get("dataset")
    source = part.get("source") if isinstance(part, Mapping) else None
    if not isinstance(source, str):
        source = record.cell.dataset
    fitting = [d for d in suite.datasets if public_source(d, suite.data_root) == source]
    return fitting or [source]


def _compare(
    record: Record,
    stored: Predictions | None,
    store: Store,
    others: Sequence[str | Mapping[str, Any]],
    tolerance: float,
    reason: str,
) -> Rerun:
    made = store.record(record.key)
    predictions = store.predictions(record.key) if made is not None else None
    if made is None:
        return Rerun(record, "not rerun", reason=reason or _why(record, others))
    if made.error is not None:
        return Rerun(record, "not rerun", reason=f"it failed: {made.error.message}")
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


def _why(record: Record, others: Sequence[str | Mapping[str, Any]]) -> str:
    """What keeps the record's key from being made here, as far as anything tells."""
    if not others:
        return "its cell of the grid could not be run here"
    mine, theirs = record.provenance.get("key_parts"), others[0]
    if isinstance(theirs, str):
        return theirs
    if not isinstance(mine, dict) or not theirs:
        return "its key differs here"
    changed = [k for k in dict.fromkeys([*mine, *theirs]) if mine.get(k) != theirs.get(k)]
    return f"its key differs here, since these differ: {', '.join(changed)}"
