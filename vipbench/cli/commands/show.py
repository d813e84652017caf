"""`vipbench show`: one record, whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from vipbench.cli.exit_codes import OK
from vipbench.errors import UsageError, unknown
from vipbench.results.records.cells import cells_of
from vipbench.results.records.predictions import Predictions
from vipbench.results.records.record import Record
from vipbench.results.selection import Selection
from vipbench.results.stats.pairing import select
from vipbench.results.store.store import Store
from vipbench.text import clean, columns, listed

# Long values (templates, weights of epochs) are cut in the text form; json has them whole.
LONGEST = 200
MOST_EPOCHS = 12
# Records that fit a choice are listed up to this number.
MOST_CHOICES = 6
# What has a part of its own below.
_APART = ("cell", "history", "error", "notes", "schema", "key", "status", "created")


def show_command(key: str | None, folder: Path, format: str, chosen: Selection) -> int:
    """Print the record whose key begins with `key`, or the only one that is chosen. Raises
    UsageError, StoreError."""
    if format not in ("text", "json"):
        raise unknown("format", format, ("text", "json"))
    with Store(folder, readonly=True) as store:
        record = _chosen(store, chosen) if key is None else _find(store, key, folder)
        predictions = store.predictions(record.key)
    if format == "json":
        value = {**record.to_dict(), "per_class_errors": _errors(record, predictions)}
        print(json.dumps(value, indent=2, ensure_ascii=False))
    else:
        print("\n".join(_lines(record, predictions)))
    return OK


def _find(store: Store, key: str, folder: Path) -> Record:
    wanted = key.strip().lower()
    if not wanted or not set(wanted) <= set("0123456789abcdef"):
        raise UsageError(
            f"'{key}' is not a key; keys are hexadecimal, and `vipbench run --dry-run` or "
            f"{folder / 'results.csv'} lists them"
        )
    keys = [found for found in store.status() if found.startswith(wanted)]
    if not keys:
        raise UsageError(f"{folder} has no record whose key begins with '{key}'")
    if len(keys) > 1:
        some = listed(found[:12] for found in keys[:5])
        raise UsageError(f"{len(keys)} keys begin with '{key}': {some}; give more characters")
    record = store.record(keys[0])
    assert record is not None  # its key was just listed
    return record


def _chosen(store: Store, chosen: Selection) -> Record:
    """The record of the only chosen cell; of a zero-shot method with any shots."""
    keys = set(store.status())
    cells = select(cells_of([], store.plan()), **vars(chosen)).planned
    exact = [c for c in cells if chosen.shots is None or c.shots in chosen.shots]
    found = [c for c in exact or cells if c.key in keys]
    if len(found) != 1:
        what = "no record matches these options"
        if found:
            some = "; ".join(f"{c.key[:8]} {c.words()}" for c in found[:MOST_CHOICES])
            more = f" and {len(found) - MOST_CHOICES} more" if len(found) > MOST_CHOICES else ""
            what = (
                f"{len(found)} records match: {some}{more}. Give a key, or choose one with "
                "--methods, --datasets, --backbones, --shots and --seeds"
            )
        raise UsageError(f"{store.out_dir}: {what}")
    record = store.record(found[0].key)
    assert record is not None  # its key was just listed
    return record


def _lines(record: Record, predictions: Predictions | None) -> list[str]:
    c = record.cell
    lines = [
        f"{c.words()}: {record.status}",
        f"key      {record.key}",
        f"method   {c.method_name}",
        f"created  {record.created}",
    ]
    if record.error is not None:
        lines += ["", f"error: {record.error.type}: {record.error.message}"]
        lines += (record.error.traceback or "").rstrip().split("\n")
    for note in record.notes:
        lines.append(f"note: {clean(note)}")
    for name, part in record.to_dict().items():
        if name not in _APART and part:
            lines += ["", name, *_tree(part)]
    if record.history:
        lines += ["", "history", *_history(record.history)]
    errors = _errors(record, predictions)
    if errors:
        lines += ["", "errors of each class", *_error_table(errors)]
    elif record.ok:
        lines += ["", "errors of each class: the store has no scores of this record"]
    return lines


def _tree(part: Any, indent: str = "  ") -> list[str]:
    lines = []
    for name, value in part.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{name}", *_tree(value, indent + "  ")]
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            lines.append(f"{indent}{name}: {clean(text, LONGEST)}")
    return lines


def _history(history: list[dict[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(name for entry in history for name in entry))
    rows = [names]
    step = max(1, -(-len(history) // MOST_EPOCHS))
    shown = [entry for i, entry in enumerate(history) if i % step == 0 or i == len(history) - 1]
    for entry in shown:
        rows.append([_number(entry.get(name)) for name in names])
    lines = [f"  {line}" for line in columns(rows)]
    if len(shown) < len(history):
        lines.append(f"  ({len(shown)} of {len(history)} epochs; --format json has all)")
    return lines


def _number(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _errors(record: Record, predictions: Predictions | None) -> list[dict[str, Any]]:
    """Of every class: its test images, how many were missed, and for what they were taken; and
    how many images of other classes were taken for it."""
    if predictions is None:
        return []
    names, labels = record.data.class_names, predictions.labels
    predicted = predictions.scores.argmax(1)
    found = []
    for i, name in enumerate(names):
        taken = np.bincount(predicted[labels == i], minlength=len(names))
        right, n = int(taken[i]), int(taken.sum())
        taken[i] = 0
        order = [j for j in np.argsort(-taken, kind="stable") if taken[j]]
        missed = predictions.scores[(labels == i) & (predicted != i)]
        wrong = np.flatnonzero((labels == i) & (predicted != i))
        margin = missed.max(1) - missed[:, i] if len(missed) else np.zeros(0)
        found.append(
            {
                "class": name,
                "n": n,
                "wrong": n - right,
                "false_alarms": int(((predicted == i) & (labels != i)).sum()),
                "taken_for": {names[j]: int(taken[j]) for j in order},
                "furthest": [predictions.ids[wrong[k]] for k in np.argsort(-margin)[:3]],
            }
        )
    return found


def _error_table(errors: list[dict[str, Any]]) -> list[str]:
    rows = [["class", "images", "wrong", "false alarms", "taken for", "most confidently wrong"]]
    for one in errors:
        taken = listed(f"{name} {count}" for name, count in one["taken_for"].items())
        counts = [str(one[k]) for k in ("n", "wrong", "false_alarms")]
        rows.append([one["class"], *counts, taken or "-", listed(one["furthest"]) or "-"])
    return [f"  {line}" for line in columns(rows)]
