"""A leaderboard as data: entries with intervals, and ranks that share places.

An entry is a row's mean over its seeds on one dataset, with one backbone, at one number of shots.
Ranks: docs/leaderboard.md has the rule.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from vipbench.results.leaderboard.gather import Gathered
from vipbench.results.leaderboard.ranking import (
    Bounds,
    bounds,
    image_bounds,
    paired_ranks,
    ranks,
    stacked,
)
from vipbench.results.records import code
from vipbench.results.records import comparable as settings
from vipbench.results.records.metrics import METRICS, metric_value
from vipbench.results.records.plan import Slot
from vipbench.results.records.record import Record

Section = Literal["methods", "informed", "transductive", "views", "test-selected"]
SHOWN = tuple(name for name, metric in METRICS.items() if not metric.per_class)
# Resampling the test images is the one slow thing here; so many single runs get it, and so many
# records at most are tested in pairs.
MOST_RESAMPLED = 60
MOST_PAIRED = 400
PAIRED, APART = "paired", "intervals"


@dataclass
class Entry:
    """One line. records: the finished cells, by seed. expected: how many seeds were asked for.
    failed: the failed cells. disputed: results of one key that differ, all of them.
    bounds, ranks: by metric, where there are any; rules: what a metric's rank rests on, PAIRED
    tests or intervals that lie APART. notes: remarks. older: whether the entry is of
    older code than others."""

    records: list[Record]
    failed: list[Record] = field(default_factory=list)
    disputed: list[list[Record]] = field(default_factory=list)
    expected: int = 0
    bounds: dict[str, Bounds] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    rules: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    older: bool = False

    @property
    def first(self) -> Record:
        """A record that stands for the entry's settings."""
        return (self.records or self.failed or self.disputed[0])[0]

    @property
    def done(self) -> bool:
        """Whether the entry has numbers: every seed that was asked for has one result."""
        return bool(self.records) and not self.disputed and len(self.records) >= self.expected

    @property
    def section(self) -> Section:
        """Where the entry stands: what saw the test images, or whose texts saw more labelled images
        than its shots, is apart."""
        protocol = self.first.protocol
        if "test" in re.split(r"[^a-z]+", f"{protocol.selection} {protocol.validation}".lower()):
            return "test-selected"
        if self.first.apart:
            return self.first.apart
        return "methods" if self.first.texts_saw_more is None else "informed"

    @property
    def competition(self) -> tuple[Any, ...]:
        """Entries of one competition are ranked among each other: the same images and classes, the
        same weights, equally many shots."""
        c, same = self.first.cell, settings.benchmark(self.first)
        return (self.section, c.dataset, c.backbone, c.shots, json.dumps(same, sort_keys=True))

    def values(self, metric: str) -> list[float | None]:
        """One number a seed."""
        return [metric_value(record.metrics, metric) for record in self.records]


def leaderboard(found: Gathered) -> list[Entry]:
    """The entries of everything gathered, ranked, by dataset, backbone, shots and place."""
    entries = list(_grouped(found))
    _expect(entries, found)
    _note_code(entries, found)
    resampled = 0
    for entry in entries:
        if entry.done:
            entry.bounds = _bounds(entry)
            if resampled < MOST_RESAMPLED:
                resampled += _resample(entry, found)
    competitions: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in entries:
        competitions.setdefault(entry.competition, []).append(entry)
    left = MOST_PAIRED
    for rivals in competitions.values():
        able = [entry for entry in rivals if entry.bounds]
        count = sum(len(entry.records) for entry in able)
        tested = {}
        if len(able) > 1 and count <= left:
            left -= count
            tested = _tested(able, found)
        _rank(rivals, tested)
        _note_protocols(rivals)
    for entry in entries:
        entry.notes += _notes(entry)
    return sorted(entries, key=_order)


def _grouped(found: Gathered) -> Iterable[Entry]:
    entries: dict[str, Entry] = {}

    def entry(record: Record) -> Entry:
        c = record.cell
        place = [c.backbone, c.dataset, c.method, str(c.shots)]
        same = settings.settings(record) | code.code(record)
        key = json.dumps([place, same], sort_keys=True)
        return entries.setdefault(key, Entry([]))

    for record in sorted(found.records, key=lambda r: r.cell.seed):
        (entry(record).records if record.ok else entry(record).failed).append(record)
    for records in found.disputed.values():
        entry(records[0]).disputed.append(records)
    return entries.values()


def _expect(entries: Iterable[Entry], found: Gathered) -> None:
    """A seed that was planned and has no number keeps its entry from having one."""
    slots: dict[Slot, set[str]] = {}
    for cell in found.plan:
        if cell.status != "impossible" and cell.key:
            slots.setdefault((*cell.slot[:4], 0), set()).add(cell.key)
    for entry in entries:
        keys = {r.key for r in [*entry.records, *entry.failed]}
        keys |= {records[0].key for records in entry.disputed}
        planned = slots.get((*entry.first.slot[:4], 0), set())
        # Plans of other settings of the same label ask for other keys.
        entry.expected = max(len(keys), len(planned)) if keys & planned else len(keys)


def _note_code(entries: Sequence[Entry], found: Gathered) -> None:
    """Mark entries made whole by older code than others, and name records that count as not yet run
    as their row is of other code by now."""
    every = [r for entry in entries for r in (*entry.records, *entry.failed)]
    # Whichever folder it lies in, the record made last tells what the code is now.
    newest = code.newest(every, ())
    gone = Counter((*record.slot[:4],) for record in found.outdated)
    for entry in entries:
        first = entry.first
        if older := code.older_parts(first, newest):
            entry.older = True
            entry.notes.append(f"§: of older code than other rows: {'; '.join(older.values())}")
        if count := gone[first.slot[:4]]:
            entry.notes.append(
                f"{count} record{'s' * (count > 1)} made by older code of this row not counted"
            )


def _bounds(entry: Entry) -> dict[str, Bounds]:
    found = {}
    for metric in SHOWN:
        values = [v for v in entry.values(metric) if v is not None]
        if len(values) == len(entry.records):
            found[metric] = bounds(np.array(values))
    return found


def _resample(entry: Entry, found: Gathered) -> bool:
    """Give the metrics to which seeds give no interval one over test images, where the record
    comes with its predictions."""
    flat = [name for name, known in entry.bounds.items() if known.low is None]
    predictions = found.predictions(entry.first.key) if flat else None
    if predictions is None:
        return False
    bounds = image_bounds(predictions, entry.first.data.class_names, flat)
    for name, new in bounds.items():
        entry.bounds[name] = replace(entry.bounds[name], low=new.low, high=new.high, of=new.of)
    return True


def _tested(rivals: Sequence[Entry], found: Gathered) -> dict[str, list[int]]:
    """metric -> ranks of the rivals by paired tests, where their predictions allow it."""
    stack = stacked([entry.records for entry in rivals], found.predictions)
    if stack is None:
        return {}
    ranks = paired_ranks(stack, [m for m in SHOWN if all(m in e.bounds for e in rivals)])
    for metric, places in ranks.items():
        for entry, place in zip(rivals, places, strict=True):
            entry.ranks[metric], entry.rules[metric] = place, PAIRED
    return ranks


def _rank(rivals: Sequence[Entry], tested: Container[str]) -> None:
    for metric in SHOWN:
        if metric in tested:
            continue
        able = [entry for entry in rivals if metric in entry.bounds]
        if len(able) < 2:
            continue
        places = ranks([e.bounds[metric] for e in able], METRICS[metric].higher_better)
        for entry, place in zip(able, places, strict=True):
            if place is not None:
                entry.ranks[metric], entry.rules[metric] = place, APART


def _note_protocols(rivals: Sequence[Entry]) -> None:
    protocols = [settings.protocol(entry.first) for entry in rivals]
    usual, _ = Counter(json.dumps(t, sort_keys=True) for t in protocols).most_common(1)[0]
    for entry, mine in zip(rivals, protocols, strict=True):
        differs = settings.differences([json.loads(usual), mine])
        if differs:
            entry.notes.append(
                f"another protocol than most rows here (theirs | its own): {'; '.join(differs)}"
            )


def _notes(entry: Entry) -> list[str]:
    notes = list(dict.fromkeys(note for record in entry.records for note in record.notes))
    spreads = settings.spread((str(r.cell.seed), settings.versions(r)) for r in entry.records)
    for name, values in spreads.items():
        notes.append(f"its seeds were not all made with the same {name}: {' | '.join(values)}")
    if entry.disputed:
        notes.append("submissions of the same cell differ: no number until one is chosen")
    if entry.failed:
        notes.append(f"{len(entry.failed)} of its cells failed")
    return notes


def _order(entry: Entry) -> tuple[Any, ...]:
    c, shots = entry.first.cell, entry.first.cell.shots
    mean = entry.bounds.get("accuracy")
    return (
        c.dataset,
        c.backbone,
        float("inf") if shots == "full" else int(shots),
        mean is None,
        -mean.mean if mean else 0.0,
        c.method,
    )


def spread(records: Sequence[Record], metrics: Sequence[str] = SHOWN) -> Mapping[str, Any]:
    """metric -> (lowest, highest) over results of one key."""
    found = {}
    for metric in metrics:
        values = [v for r in records if (v := metric_value(r.metrics, metric)) is not None]
        if values:
            found[metric] = (min(values), max(values))
    return found
