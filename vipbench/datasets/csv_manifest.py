"""`csv:PATH`: a table with the columns path, label[, split][, group][, sha256].

Images are looked for below the folder that the user named (`--images`, or `images: DIR` in the
card), then below the table's own. A card beside the table (`STEM.yaml`) may also say what the
columns are called, what classes are shown as, and templates, symptoms, licence, … Classes are in
natural order of their names; spellings of one label or patient that differ in what nobody sees, or
in how a number is written, are one.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import vipbench
from vipbench.api.dataset import SPLITS, DataError, Dataset, Split
from vipbench.datasets.reading.card import COLUMNS, Card, find_card
from vipbench.datasets.reading.image_folders import ImageFolders
from vipbench.datasets.reading.manifest import Entry, classes_of, patient_column, read_manifest
from vipbench.datasets.reading.paths import find_source
from vipbench.datasets.reading.rows import Row, locate, make_splits, take_val
from vipbench.datasets.reading.spelling import split_of
from vipbench.datasets.reading.table import read_table
from vipbench.errors import UsageError
from vipbench.hookspecs import RegisterDataset


class CsvDataset(Dataset):
    """The manifest `argument`; relative paths are looked for in the working directory, then in
    the data folder. class_names are known once it is loaded."""

    class_names: tuple[str, ...] = ()
    takes_images = True
    revision = 2

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
        manifest = read_manifest(path, card)
        entries = manifest.entries
        if not manifest.has_split:
            grouped = any(entry.group is not None for entry in entries)
            _, header = next(read_table(path, COLUMNS))
            column = card.columns.get("group", "group") if grouped else patient_column(header)
            beside = None if Path(self.argument).expanduser().exists() else root
            raise UsageError(no_split(f"csv:{self.argument}", column, beside))
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
        rows, files = locate(image_folders(path, card, self.image_root), rows)
        _check_digests(entries, {row.where: files[row.path] for n in SPLITS for row in rows[n]})
        if not rows["val"]:
            rows, self.caption = take_val(rows, found, files)
        self.notes = manifest.notes
        card.apply(self)
        return make_splits(rows, files)


def card_of(path: Path) -> Card:
    """The card beside a manifest, empty where there is none."""
    return find_card(path.with_suffix(".yaml"), path.with_suffix(".yml")) or Card(path)


def image_folders(path: Path, card: Card, given: Path | None) -> ImageFolders:
    """Where the images of a manifest may lie: where the user stated, and beside it. given: what
    --images names."""
    name = path.with_suffix(".yaml").name
    return ImageFolders([*card.image_folders(given), path.parent], card=name)


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


def _split_of(entry: Entry) -> str:
    found = split_of(entry.split or "")
    if found is None:
        raise DataError(
            f"{entry.where}: split is '{entry.split}'; expected train, val or test (training, "
            "valid, validation, dev and testing are read, too)"
        )
    return found


def _check_digests(entries: Sequence[Entry], files: Mapping[str, Path]) -> None:
    """Each file is the one that the manifest means, and no image is in two splits. files: those of
    the rows, by their place."""
    seen: dict[str, Entry] = {}
    for entry in entries:
        if entry.sha256 is None:
            continue
        digest = entry.sha256.lower()
        path = files[entry.where]
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
