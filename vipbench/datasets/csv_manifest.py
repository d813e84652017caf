"""`csv:PATH`: a table with the columns path, label[, split][, group][, sha256].

Paths are relative to the CSV file's folder. A card beside it (`STEM.yaml`) may say what the
columns are called, where the images are (`images: FOLDER`), what classes are shown as, and
templates, symptoms, licence, … Classes are in natural order of their names.
"""

from __future__ import annotations

import csv
import hashlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import vipbench
from vipbench.api.dataset import SPLITS, DataError, Dataset, Split
from vipbench.datasets.reading.card import COLUMNS, Card, find_card
from vipbench.datasets.reading.paths import find_source, inside, listed, natural_key
from vipbench.datasets.reading.rows import Row, make_splits, take_val
from vipbench.errors import UsageError
from vipbench.hookspecs import RegisterDataset

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Entry:
    """One row of a manifest, by the columns' own names; None where there is no such column."""

    where: str
    path: str
    label: str
    split: str | None
    group: str | None
    sha256: str | None


class CsvDataset(Dataset):
    """The manifest `argument`; relative paths are looked for in the working directory, then in
    the data folder. class_names are known once it is loaded."""

    class_names: tuple[str, ...] = ()

    def __init__(self, argument: str | None) -> None:
        if not argument:
            raise UsageError("dataset 'csv' needs a manifest: csv:PATH")
        self.argument = argument
        self.name = Path(argument).stem

    def locate(self, root: Path | None) -> Path:
        """See Dataset."""
        return find_source(self.argument, root, "manifest")

    def load(self, root: Path | None) -> Mapping[str, Split]:
        """Read the manifest and find its images. Raises DataError naming file and row."""
        path = self.locate(root)
        card = card_of(path)
        entries = read_manifest(path, card.columns)
        if entries[0].split is None:
            column = (
                _patient_column(path)
                if entries[0].group is None
                else card.columns.get("group", "group")
            )
            elsewhere = None if Path(self.argument).expanduser().exists() else root
            raise UsageError(no_split(f"csv:{self.argument}", column, elsewhere))
        found = classes_of(entries)
        self.class_names = card.display_names(found)
        rows: dict[str, list[Row]] = {name: [] for name in SPLITS}
        for entry in entries:
            rows[_split_of(entry)].append(
                Row(entry.path, found.index(entry.label), entry.where, entry.group)
            )
        for name in ("train", "test"):
            if not rows[name]:
                raise DataError(f"manifest '{path}' has no row with split '{name}'")
        if not rows["val"]:
            rows, self.caption = take_val(rows, found)
        base = card.image_folder() or path.parent
        splits = make_splits(base, rows)
        _check_digests(base, entries)
        card.apply(self)
        return splits


def card_of(path: Path) -> Card:
    """The card beside a manifest, empty where there is none."""
    return find_card(path.with_suffix(".yaml"), path.with_suffix(".yml")) or Card(path)


def classes_of(entries: Sequence[Entry]) -> list[str]:
    """The classes, in natural order."""
    return sorted({entry.label for entry in entries}, key=natural_key)


def _patient_column(path: Path) -> str | None:
    """The column that by its name holds patient ids; None where no name says so."""
    _, header = next(_read(path))
    return next((name for name in header if name.lower() in ("patient_id", "patient")), None)


def no_split(source: str, group: str | None, root: Path | None = None) -> str:
    """What to do with data that have no split. group: the column with patient ids, where there is
    one; root: the data folder, where the source was found there."""
    where = "" if root is None else f" --data-root {shlex.quote(str(root))}"
    hint = ""
    if group is None:
        hint = (
            " (--group names the column with patient ids; leave it out where each image is of a "
            "patient of its own)"
        )
    return (
        f"dataset '{source}' has no split. Draw one and write it down: vipbench dataset split "
        f"{shlex.quote(source)} --group {shlex.quote(group or 'COLUMN')} --ratios 6/1/3 --seed 1"
        f"{where}{hint}"
    )


def read_manifest(path: Path, columns: Mapping[str, str]) -> list[Entry]:
    """The rows of a manifest. columns: what the columns are called, where not by their names.

    Raises DataError naming file and row.
    """
    rows = _read(path)
    header_where, header = next(rows, ("", []))
    if not header:
        raise DataError(f"manifest '{path}' is empty; expected the columns path,label[,split]…")
    names = [name.strip() for name in header]
    places: dict[str, int | None] = {}
    for column in COLUMNS:
        wanted = columns.get(column, column)
        times = names.count(wanted)
        if times > 1:
            raise DataError(f"{header_where}: the column '{wanted}' is there {times} times")
        if not times and (column in ("path", "label") or column in columns):
            raise DataError(
                f"{header_where}: no column '{wanted}' for the {column}; the columns are "
                f"{listed(names, 20)}. A card '{path.with_suffix('.yaml').name}' can say what "
                f"they are called: `columns: {{{column}: NAME}}`"
            )
        places[column] = names.index(wanted) if times else None

    def value(row: Sequence[str], column: str) -> str | None:
        place = places[column]
        return None if place is None else row[place].strip()

    entries = []
    for where, row in rows:
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(names):
            raise DataError(f"{where} has {len(row)} cells; the header has {len(names)}")
        relative, label = value(row, "path"), value(row, "label")
        if not relative or not label:
            raise DataError(f"{where} has no {'path' if not relative else 'label'}")
        entries.append(
            Entry(
                where,
                relative,
                label,
                value(row, "split"),
                value(row, "group"),
                value(row, "sha256") or None,
            )
        )
    if not entries:
        raise DataError(f"manifest '{path}' has a header and no rows")
    return entries


def _read(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Rows, each with `manifest 'x.csv', row n` (lines of the file, from 1)."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for row in reader:
                yield f"manifest '{path}', row {reader.line_num}", row
    except OSError as error:
        raise DataError(f"manifest '{path}' cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"manifest '{path}' is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error
    except csv.Error as error:
        raise DataError(f"manifest '{path}', row {reader.line_num}: {error}") from error


def _split_of(entry: Entry) -> str:
    given = (entry.split or "").lower()
    if given not in SPLIT_NAMES:
        raise DataError(
            f"{entry.where}: split is '{entry.split}'; expected {', '.join(SPLIT_NAMES)}"
        )
    return SPLIT_NAMES[given]


def _check_digests(base: Path, entries: Sequence[Entry]) -> None:
    """Each file is the one that the manifest means, and no image is in two splits."""
    seen: dict[str, Entry] = {}
    for entry in entries:
        if entry.sha256 is None:
            continue
        digest = entry.sha256.lower()
        path = inside(base, entry.path, entry.where)
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest:
            raise DataError(
                f"{entry.where}: '{path}' has the SHA-256 {found}; the manifest says {digest}: "
                "the file has changed, or the row is of another one"
            )
        other = seen.setdefault(digest, entry)
        if _split_of(other) != _split_of(entry):
            raise DataError(
                f"'{other.path}' ({other.where}, {other.split}) and '{entry.path}' "
                f"({entry.where}, {entry.split}) are the same image in two splits; keep one"
            )


@vipbench.hookimpl
def register_datasets(register: RegisterDataset) -> None:
    """Register `csv:PATH`."""
    register("csv", CsvDataset, help="csv:PATH, a table of path, label[, split][, group][, sha256]")
