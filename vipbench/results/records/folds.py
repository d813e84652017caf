"""The folds of a dataset taken together: one cell and one record of all folds' test images.

The metrics are of the pooled predictions, so that an interval over test images, by patient, is one
over all images of the dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vipbench.results.records import code
from vipbench.results.records.comparable import require_equal, settings
from vipbench.results.records.metrics import METRICS, compute_metrics
from vipbench.results.records.plan import PlannedCell, Slot
from vipbench.results.records.predictions import Predictions
from vipbench.results.records.protocol_names import split_fold
from vipbench.results.records.record import Record, json_sha256

Load = Callable[[str], Predictions | None]
# What folds of one cell do not share.
_OF_A_FOLD = ("dataset.fingerprint", "test_counts")


@dataclass(frozen=True)
class Pooled:
    """records, planned: with one for all folds of a cell. folds: of such a one's key the keys of
    its folds, in order."""

    records: list[Record]
    planned: list[PlannedCell]
    folds: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def predictions(self, load: Load) -> Load:
        """`load` for the records' keys, pooled ones among them."""

        def found(key: str) -> Predictions | None:
            return join(self.folds[key], load) if key in self.folds else load(key)

        return found


def pool(
    records: Iterable[Record],
    planned: Iterable[PlannedCell],
    load: Load,
    keep: Collection[str] = (),
) -> Pooled:
    """Records and plan as tables take them. Folds are taken together where all of them are planned,
    and have a record where all have been run by the same code. keep: names of folds, such as
    `study@fold-2`, that are shown themselves, too.

    Raises TableError for folds that were run with different settings.
    """
    records, planned = list(records), list(planned)
    if all(split_fold(record.cell.dataset)[1] is None for record in records) and all(
        split_fold(cell.dataset)[1] is None for cell in planned
    ):
        return Pooled(records, planned)
    given = bool(planned)
    cells = planned or [PlannedCell.of(record, status="done") for record in records]
    by_key = {record.key: record for record in records}
    outdated = code.outdated([r for r in records if r.key in {c.key for c in cells}], cells)
    counts = _counts(records, cells)
    groups: dict[Slot, dict[int, PlannedCell]] = {}
    for cell in cells:
        stem, fold = split_fold(cell.dataset)
        if fold is not None:
            groups.setdefault(_without_fold(cell, stem).slot, {})[fold] = cell
    whole = {slot: own for slot, own in groups.items() if len(own) == counts.get(slot[1], 0) > 1}
    folds: dict[str, tuple[str, ...]] = {}
    made: dict[Slot, PlannedCell] = {}
    more: list[Record] = []
    for slot, own in whole.items():
        members = [own[fold] for fold in sorted(own)]
        cell = made[slot] = _cell(members, slot[1])
        found = [by_key.get(c.key) for c in members if c.key not in outdated]
        some = [record for record in found if record is not None]
        if cell.key and (len(some) == len(members) or any(not record.ok for record in some)):
            folds[cell.key] = tuple(c.key for c in members)
            more.append(_record(cell, some, load))
    left = {c.key for slot, own in whole.items() for c in own.values() if c.dataset not in keep}
    shown: dict[Slot, PlannedCell] = {}
    for cell in cells:
        pooled = made.get(_without_fold(cell, split_fold(cell.dataset)[0]).slot)
        if pooled is not None and split_fold(cell.dataset)[1] is not None:
            shown.setdefault(pooled.slot, pooled)
            if cell.dataset not in keep:
                continue
        shown[cell.slot] = cell
    kept = [record for record in records if record.key not in left]
    return Pooled([*kept, *more], list(shown.values()) if given else [], folds)


def _without_fold(cell: PlannedCell, stem: str) -> PlannedCell:
    return cell.model_copy(update={"dataset": stem})


def _counts(records: Sequence[Record], cells: Sequence[PlannedCell]) -> dict[str, int]:
    """Dataset -> how many folds it has, as its records say, else as many as are planned."""
    planned: dict[str, set[int]] = {}
    for cell in cells:
        stem, fold = split_fold(cell.dataset)
        if fold is not None:
            planned.setdefault(stem, set()).add(fold)
    found = {stem: len(own) for stem, own in planned.items()}
    for record in records:
        stem, fold = split_fold(record.cell.dataset)
        count = getattr(record.data, "folds", None)
        if fold is not None and type(count) is int:
            found[stem] = count
    return found


def _cell(members: Sequence[PlannedCell], stem: str) -> PlannedCell:
    impossible = next((cell for cell in members if cell.status == "impossible"), None)
    keys = [cell.key for cell in members]
    update: dict[str, Any] = {"dataset": stem, "run": max(cell.run for cell in members)}
    if impossible is not None:
        return impossible.model_copy(update=update)
    return members[0].model_copy(update=update | {"key": json_sha256(["folds", *keys])})


def _record(cell: PlannedCell, folds: Sequence[Record], load: Load) -> Record:
    """The record of all folds; of a failed one its error."""
    failed = next((record for record in folds if not record.ok), None)
    first = failed or folds[0]
    value = first.to_dict()
    value |= {"key": cell.key, "history": [], "cell": value["cell"] | {"dataset": cell.dataset}}
    if failed is not None:
        return Record.of(value)
    where = f"{cell.method} on the folds of {cell.dataset}, {cell.backbone}, shots {cell.shots}"
    require_equal(folds, [_shared(record) for record in folds], where)
    predictions = [load(record.key) for record in folds]
    joined = None if any(p is None for p in predictions) else join([r.key for r in folds], load)
    names = first.data.class_names
    data = {k: v for k, v in value["data"].items() if k not in ("fold", "notes")}
    for name in ("train_counts", "val_counts", "test_counts"):
        columns = zip(*(getattr(record.data, name) for record in folds), strict=True)
        data[name] = [sum(column) for column in columns]
    for name in ("n_support", "n_val"):
        data[name] = min(getattr(record.data, name) for record in folds)
    data["fingerprint"] = json_sha256(["folds", *(record.data.fingerprint for record in folds)])
    value["data"] = data
    value["notes"] = list(dict.fromkeys(note for record in folds for note in record.notes))
    value["created"] = max(record.created for record in folds)
    value["provenance"].pop("parameters", None)
    value["timing"] = _sums([record.timing for record in folds])
    if joined is None:
        # Without scores nothing can be pooled but what is a mean over images.
        counts = [record.metrics["n"] for record in folds]
        accuracy = sum(r.metrics["accuracy"] * n for r, n in zip(folds, counts, strict=True))
        value["metrics"] = {"n": sum(counts), "accuracy": accuracy / sum(counts)}
        return Record.of(value)
    value["metrics"] = compute_metrics(joined.labels, joined.scores, names)
    value["provenance"] |= {
        "prediction_hash": joined.prediction_hash,
        "metric_revisions": {name: metric.revision for name, metric in METRICS.items()},
    }
    return Record.of(value)


def _shared(record: Record) -> dict[str, Any]:
    found = {k: v for k, v in settings(record).items() if k not in _OF_A_FOLD}
    if record.cell.shots == "full":
        # What a method makes of the number of its images.
        found = {k: v for k, v in found.items() if not k.startswith(("hparams", "recipe"))}
    return found | code.code(record)


def join(keys: Sequence[str], load: Load) -> Predictions | None:
    """The scores of these records one after the other; None where one has none."""
    found = [load(key) for key in keys]
    parts = [one for one in found if one is not None]
    if len(parts) < len(keys):
        return None
    grouped = all(part.groups is not None for part in parts)
    return Predictions(
        [name for part in parts for name in part.ids],
        [name for part in parts for name in part.groups or ()] if grouped else None,
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.scores for part in parts]),
    )


def _sums(many: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys(name for one in many for name, v in one.items() if type(v) is float)
    return {name: sum(one.get(name, 0.0) for one in many) for name in names}
