"""Columns that are made of others: means over datasets and targets, and the harmonic mean of base
and new classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vipbench.results.records.metrics import find_metric
from vipbench.results.records.protocol_names import (
    AVERAGE,
    BASE,
    HARMONIC,
    NEW,
    derived,
    part_name,
    split_part,
    targets_name,
)
from vipbench.results.tables.table import BLANK, Column, Entry, Table

# Columns of entries, with what heads them.
Columns = list[tuple[Column, list[Entry]]]


def with_average(table: Table) -> Table:
    """With, for each backbone, metric and shots that every dataset has, the mean over datasets: one
    for each part that datasets are tested on (base classes, new classes). Targets of a transfer
    are in none of them, they have a mean of their own."""
    given = _columns(table)
    families: dict[str, Columns] = {}
    for column, entries in given:
        name = column.dataset or ""
        if not derived(name) and targets_name(name) is None:
            families.setdefault(split_part(name)[1], []).append((column, entries))
    for part, own in families.items():
        given += _means(own, part_name(AVERAGE, part) if part else AVERAGE)
    return _table(table, given)


def with_parts(table: Table) -> Table:
    """With the harmonic mean beside base and new classes, and the mean over the targets of each
    dataset that was transferred to several."""
    given = _columns(table)
    found: Columns = []
    for i, (column, entries) in enumerate(given):
        found.append((column, entries))
        name = column.dataset or ""
        last = i + 1 == len(given) or given[i + 1][0].dataset != name
        stem, part = split_part(name)
        if last and part == NEW:
            found += _harmonics(given, stem)
    targets: dict[str, Columns] = {}
    for column, entries in given:
        mean = targets_name(column.dataset or "")
        if mean is not None:
            targets.setdefault(mean, []).append((column, entries))
    for mean, own in targets.items():
        found += _means(own, mean)
    return _table(table, found)


def _harmonics(given: Columns, stem: str) -> Columns:
    bases = {
        replace(column, dataset=None): entries
        for column, entries in given
        if column.dataset == part_name(stem, BASE)
    }
    found: Columns = []
    for column, entries in given:
        base = bases.get(replace(column, dataset=None))
        if column.dataset != part_name(stem, NEW) or base is None:
            continue
        # Of errors, where less is better, it says nothing.
        if find_metric(column.metric or "accuracy").higher_better:
            both = [harmonic(b, n) for b, n in zip(base, entries, strict=True)]
            found.append((replace(column, dataset=part_name(stem, HARMONIC)), both))
    return found


def harmonic(base: Entry, new: Entry) -> Entry:
    """2·base·new / (base + new) of the two means, as CoCoOp's tables have it: of means over seeds,
    and over datasets of the two averages."""
    if "blank" in (base.state, new.state):
        return BLANK
    n, expected = min(base.n, new.n), max(base.n_expected, new.n_expected)
    if base.mean is None or new.mean is None:
        return Entry("unfinished", n=n, n_expected=expected)
    total = base.mean + new.mean
    mean = 2 * base.mean * new.mean / total if total > 0 else 0.0
    return Entry("done", mean, None, n, expected, saw=_most_images_seen([base, new]))


def _means(own: Columns, name: str) -> Columns:
    """The mean over the datasets of `own`, of two or more, where all have a column."""
    datasets = dict.fromkeys(column.dataset for column, _ in own)
    groups: dict[Column, Columns] = {}
    for column, entries in own:
        groups.setdefault(replace(column, dataset=name), []).append((column, entries))
    return [
        (column, [_mean(line) for line in zip(*(entries for _, entries in some), strict=True)])
        for column, some in groups.items()
        if len(datasets) > 1 and len(some) == len(datasets)
    ]


def _mean(entries: Sequence[Entry]) -> Entry:
    if all(e.state == "blank" for e in entries):
        return BLANK
    means = [e.mean for e in entries if e.mean is not None]
    if len(means) < len(entries):
        return Entry("unfinished", n=len(means), n_expected=len(entries))
    return Entry(
        "done", float(np.mean(means)), None, len(means), len(means), saw=_most_images_seen(entries)
    )


def _most_images_seen(entries: Sequence[Entry]) -> int | None:
    return max((e.saw for e in entries if e.saw is not None), default=None)


def _columns(table: Table) -> Columns:
    return [(column, [line[j] for line in table.entries]) for j, column in enumerate(table.columns)]


def _table(table: Table, columns: Columns) -> Table:
    if len(columns) == len(table.columns):
        return table
    lines = tuple(tuple(entries[i] for _, entries in columns) for i in range(len(table.entries)))
    return replace(table, columns=tuple(column for column, _ in columns), entries=lines)
