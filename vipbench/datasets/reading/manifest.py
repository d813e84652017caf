"""A table of images, as `csv:PATH` reads it, with one spelling for each label and group."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vipbench.api.dataset import DataError
from vipbench.datasets.reading.card import COLUMNS, Card
from vipbench.datasets.reading.paths import listed, natural_key
from vipbench.datasets.reading.spelling import (
    clean,
    column_key,
    group_key,
    label_key,
    label_lists,
    missing,
    number,
    one_spelling,
    shown_apart,
)
from vipbench.datasets.reading.table import read_table

# Columns that by their names hold ids of patients, or of what else may be on several images.
_PATIENT = re.compile(
    r"(patient|subject|participant)s?|(p|s)id"
    r"|(patient|subject|participant|person|case|lesion|study|exam)[ _.-]?(ids?|nr|no|numbers?)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Entry:
    """One row of a manifest, by the columns' own names; None where there is no such column."""

    where: str
    path: str
    label: str
    split: str | None
    group: str | None
    sha256: str | None
    fold: str | None = None


@dataclass(frozen=True)
class Manifest:
    """entries: the rows, with one spelling for each label and group. notes: what was taken as one,
    a sentence each. has_split, has_folds: whether there is such a column; folds are read where
    there is no split."""

    entries: list[Entry]
    notes: tuple[str, ...]
    has_split: bool
    has_folds: bool


def read_manifest(path: Path, card: Card, group: str | None = None) -> Manifest:
    """The rows of a manifest. card: says what the columns are called, where not by their names.
    group: the column with groups, where not the card's.

    Raises DataError naming file and row.
    """
    columns = card.columns if group is None else {**card.columns, "group": group}
    rows = read_table(path, [columns.get(column, column) for column in COLUMNS])
    header_where, header = next(rows, ("", []))
    if not header:
        raise DataError(f"manifest '{path}' is empty; expected the columns path,label[,split]…")
    names = [clean(name) for name in header]
    cells = [(where, row) for where, row in rows if any(cell.strip() for cell in row)]
    for where, row in cells:
        if len(row) != len(names):
            raise DataError(f"{where} has {len(row)} cells; the header has {len(names)}")
    places: dict[str, int | None] = {}
    for column in COLUMNS:
        wanted = columns.get(column, column)
        spelled = [name for name in names if name == wanted] or [
            name for name in names if column_key(name) == column_key(wanted)
        ]
        times = len(spelled)
        if times > 1:
            raise DataError(f"{header_where}: the column '{wanted}' occurs {times} times")
        if not times and (column in ("path", "label") or column in columns):
            labelled = columns.get("label", "label") in names
            flags = None if labelled else one_hot(names, [row for _, row in cells])
            one_hots = "" if flags is None else flags.refusal()
            raise DataError(
                f"{header_where}: no column '{wanted}' for the {column}; the columns are "
                f"{listed(names, 20)}. {one_hots}A card '{path.with_suffix('.yaml').name}' can "
                f"name them: `columns: {{{column}: NAME}}`"
            )
        places[column] = names.index(spelled[0]) if times else None
    if not cells:
        raise DataError(f"manifest '{path}' has a header but no rows")

    def value(row: Sequence[str], column: str) -> str | None:
        place = places[column]
        return None if place is None else row[place].strip()

    named = card.named()
    entries = []
    for where, row in cells:
        relative, label, group = (value(row, name) or "" for name in ("path", "label", "group"))
        for name, text in (("path", relative), ("label", label)):
            if missing(text) and (name == "path" or clean(text) not in named):
                means = f": '{text}' counts as empty" if text else ""
                raise DataError(
                    f"{where} has no {name}{means}; fill it in or remove the row"
                    + (
                        f" (a class of this name needs a line in the card, class_names: "
                        f"{{'{text}': NAME}})"
                        if text and name == "label"
                        else ""
                    )
                )
        entries.append(
            Entry(
                where,
                relative,
                label,
                value(row, "split"),
                None if missing(group) else group,
                value(row, "sha256") or None,
                value(row, "fold"),
            )
        )
    unread = [name if i not in places.values() else "" for i, name in enumerate(names)]
    entries, spelled_as_one = _one_spelling(entries, named, columns)
    notes = list(spelled_as_one)
    has_split, has_folds = (places[column] is not None for column in ("split", "fold"))
    if has_split and has_folds:
        notes.append(
            f"the column '{columns.get('fold', 'fold')}' is not read, since the column "
            f"'{columns.get('split', 'split')}' gives each image its split"
        )
    if (flags := one_hot(unread, [row for _, row in cells])) is not None:
        notes.append(flags.beside(columns.get("label", "label")))
    patients = patient_column(unread)
    if card.group and places["group"] is not None:
        notes.append(
            f"the column '{names[places['group']]}' is not read, since the card takes groups from "
            f"the images: {card.group}"
        )
    if patients is not None and places["group"] is None and not card.group:
        notes.append(
            f"the column '{patients}' is not read, so that images of one patient may be in two "
            f"splits; where it holds ids of patients or lesions, say so in the card: "
            f"`columns: {{group: {patients}}}`"
        )
    return Manifest(entries, tuple(notes), has_split, has_folds and not has_split)


def _one_spelling(
    entries: Sequence[Entry], named: set[str], columns: Mapping[str, str]
) -> tuple[list[Entry], list[str]]:
    """The rows with one spelling for each label and group, and a sentence on each that was taken as
    one. named: labels that the card names; of two that it names apart each stays as it is."""
    lists = label_lists({entry.label for entry in entries if clean(entry.label) not in named})
    if lists:
        first = next(entry for entry in entries if entry.label in lists)
        n = sum(entry.label in lists for entry in entries)
        raise DataError(
            f"{first.where}: the label '{first.label}' looks like a list of several "
            f"({listed(lists[first.label])}), as those of {n} row{'s' * (n > 1)} do: the set is "
            "multi-label; expected one class for each image. If it is the name of one class, "
            f"say so in the card: class_names: {{'{first.label}': NAME}}"
        )
    keys = [label_key(name) for name in named]
    apart = {name for name in named if keys.count(label_key(name)) > 1}
    labels = one_spelling(
        (entry.label for entry in entries),
        lambda text: clean(text) if clean(text) in apart else label_key(text),
    )
    for texts in labels.merged:  # the card's spelling goes before ours
        if known := named.intersection(map(clean, texts)):
            labels.of.update(dict.fromkeys(texts, min(known)))
    groups = one_spelling((e.group for e in entries if e.group is not None), group_key)
    notes = [
        f"labels spelled {shown_apart(texts)} are taken as one class, '{labels.of[texts[0]]}'"
        for texts in labels.merged
    ]
    column = columns.get("group", "group")
    if groups.merged:
        n = len(groups.merged)
        notes.append(
            f"{n} id{'s' * (n > 1)} of the column '{column}' {'are' if n > 1 else 'is'} spelled in "
            "several ways and taken as one group each, for instance "
            f"{shown_apart(groups.merged[0])}"
        )
    lacking = sum(entry.group is None for entry in entries)
    if 0 < lacking < len(entries):
        notes.append(
            f"{lacking} row{'s have' if lacking > 1 else ' has'} nothing in the column '{column}'; "
            "each such image is taken as a group of its own"
        )
    spelled = [
        replace(
            entry,
            label=labels.of[entry.label],
            group=None if entry.group is None else groups.of[entry.group],
        )
        for entry in entries
    ]
    return spelled, notes


@dataclass(frozen=True)
class OneHot:
    """Columns that hold 0 and 1, one for each class or finding. several: rows with more than one
    1."""

    columns: list[str]
    several: int

    def refusal(self) -> str:
        """A sentence for a table that has no column with labels."""
        start = f"The columns {self._named()} hold 0 and 1, one for each class (one-hot labels)"
        if self.several:
            return (
                f"{start}, and {self.several} rows have several: the set is multi-label; expected "
                "one class for each image. "
            )
        return f"{start}: write the name of the class that has the 1 into one column. "

    def beside(self, label: str) -> str:
        """A note for a table whose labels are in the column `label`."""
        several = f" ({self.several} rows have several)" if self.several else ""
        return (
            f"the columns {self._named()} hold 0 and 1{several} and are not read: each image has "
            f"the one class that the column '{label}' gives it"
        )

    def _named(self) -> str:
        return listed(self.columns, 20)


def one_hot(names: Sequence[str], rows: Sequence[Sequence[str]]) -> OneHot | None:
    """Columns that hold 0 and 1 (or words for them, blank cells and the -1 of an uncertain finding
    among them); None where there are fewer than two. Columns without a name are passed over."""

    def value(cell: str) -> str | None:
        word = clean(cell).casefold()
        words = {"true": "1", "yes": "1", "false": "0", "no": "0"}
        return words.get(word) or ("0" if missing(cell) else number(cell))

    columns = [
        place
        for place, name in enumerate(names)
        if name and {"0", "1"} <= {value(row[place]) for row in rows} <= {"0", "1", "-1"}
    ]
    if len(columns) < 2:
        return None
    several = sum(sum(value(row[place]) == "1" for place in columns) > 1 for row in rows)
    return OneHot([names[place] for place in columns], several)


def patient_column(names: Sequence[str]) -> str | None:
    """The first column that by its name holds ids of patients; None where no name says so."""
    return next(filter(_PATIENT.fullmatch, names), None)


def classes_of(entries: Sequence[Entry]) -> list[str]:
    """The classes, in natural order."""
    return sorted({entry.label for entry in entries}, key=natural_key)
