"""`csv:PATH`: a table with the columns path, label[, split | fold][, group][, sha256].

Images are looked for below the folder that the user named (`--images`, or `images: DIR` in the
card), then below the table's own. A card beside the table (`STEM.yaml`) may also say what the
columns are called, what classes are shown as, and templates, symptoms, licence, … Classes are in
natural order of their names; spellings of one label or patient that differ in what nobody sees, or
in how a number is written, are one. Without a split, images of a table with folds are trained and
tested by fold; `csv:PATH@fold-2` is the training that is tested on fold 2 alone.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import vipbench
from vipbench.api.dataset import SPLITS, DataError, Dataset, Split
from vipbench.datasets.reading.card import COLUMNS, Card, find_card
from vipbench.datasets.reading.image_folders import ImageFolders
from vipbench.datasets.reading.manifest import Entry, classes_of, patient_column, read_manifest
from vipbench.datasets.reading.paths import find_source, natural_key
from vipbench.datasets.reading.rows import Row, locate, make_splits, take_val, with_groups
from vipbench.datasets.reading.spelling import clean, number, split_of
from vipbench.datasets.reading.table import read_table
from vipbench.errors import UsageError
from vipbench.files import open_regular
from vipbench.hookspecs import RegisterDataset

_ONE_FOLD = re.compile(r"(.+)@(fold-\d+)")
_FOLD = re.compile(r"fold[ _-]?(\d+)")


class CsvDataset(Dataset):
    """The manifest `argument`; relative paths are looked for in the working directory, then in
    the data folder. class_names are known once it is loaded."""

    class_names: tuple[str, ...] = ()
    takes_images = True
    revision = 2

    def __init__(self, argument: str | None) -> None:
        if not argument:
            raise UsageError("dataset 'csv' needs a manifest: csv:PATH")
        one = _ONE_FOLD.fullmatch(argument)
        if one is not None and not Path(argument).expanduser().exists():
            argument, self.fold = one.groups()
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
        if self.fold is not None and not manifest.has_folds:
            raise DataError(
                f"manifest '{path}' has no folds; expected a column fold (and none called split) "
                f"for '@{self.fold}'"
            )
        if not (manifest.has_split or manifest.has_folds):
            grouped = any(entry.group is not None for entry in entries)
            _, header = next(read_table(path, COLUMNS))
            column = card.columns.get("group", "group") if grouped else patient_column(header)
            column = card.group or column
            beside = None if Path(self.argument).expanduser().exists() else root
            raise UsageError(no_split(f"csv:{self.argument}", column, beside, self.image_root))
        found = classes_of(entries)
        self.class_names = card.display_names(found)
        place_of = _fold_of if manifest.has_folds else _split_of
        names = _folds(entries) if manifest.has_folds else SPLITS
        rows: dict[str, list[Row]] = {name: [] for name in names}
        for entry in entries:
            rows[place_of(entry)].append(
                Row(entry.path, found.index(entry.label), entry.where, entry.group)
            )
        for name in names if manifest.has_folds else ("train", "test"):
            if not rows[name]:
                raise DataError(f"manifest '{path}' has no row of split '{name}'")
        rows, files = locate(image_folders(path, card, self.image_root), rows)
        self.notes = manifest.notes
        if card.group:
            groups, lacking = card.file_groups(files)
            rows = with_groups(rows, groups)
            self.notes = (*self.notes, *lacking)
        where = {row.where: files[row.path] for name in names for row in rows[name]}
        check_digests(entries, where, place_of)
        if not manifest.has_folds and not rows["val"]:
            rows, self.caption = take_val(rows, found, files)
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


def no_split(
    source: str, group: str | None, root: Path | None = None, images: Path | None = None
) -> str:
    """What to do with data that have no split. group: the column with patient ids, where there is
    one; root: the data folder, where the source was found there; images: what --images names."""
    flags = (("--data-root", root), ("--images", images))
    where = "".join(f" {flag} {shlex.quote(str(value))}" for flag, value in flags if value)
    hint = ""
    if group is None:
        hint = (
            " (--group names the column with patient ids; leave it out if each image is of another "
            "patient)"
        )
    return (
        f"dataset '{source}' has no split. Draw and save one: vipbench dataset split "
        f"{shlex.quote(source)} --group {shlex.quote(group or 'COLUMN')} --ratios 6/1/3 --seed 1"
        f"{where}{hint}"
    )


def _split_of(entry: Entry) -> str:
    found = split_of(entry.split or "")
    if found is None:
        raise DataError(
            f"{entry.where}: split is '{entry.split}'; expected train, val or test (training, "
            "valid, validation, dev and testing are accepted, too)"
        )
    return found


def _fold_of(entry: Entry) -> str:
    found = _FOLD.fullmatch(clean(entry.fold or "").casefold())
    plain = number(entry.fold or "") if found is None else found[1]
    if plain is None or not plain.isdigit():
        raise DataError(
            f"{entry.where}: fold is '{entry.fold or ''}'; expected a whole number such as 1"
        )
    return f"fold-{int(plain)}"


def _folds(entries: Sequence[Entry]) -> list[str]:
    """The folds in the order of their numbers."""
    names = sorted({_fold_of(entry) for entry in entries}, key=natural_key)
    if len(names) < 2:
        raise DataError(
            f"{entries[0].where}: all rows are of {names[0]}; expected two folds or more"
        )
    return names


def check_digests(
    entries: Sequence[Entry], files: Mapping[str, Path], place_of: Callable[[Entry], str]
) -> None:
    """Each file is the one that the manifest means, and no image is in two splits or folds. files:
    those of the rows, by their place. place_of: a row's split or fold."""
    seen: dict[str, Entry] = {}
    for entry in entries:
        if entry.sha256 is None:
            continue
        digest = entry.sha256.lower()
        path = files[entry.where]
        with open_regular(path) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest:
            raise DataError(
                f"{entry.where}: '{path}' has the SHA-256 {found}; the manifest says {digest}: "
                "the file has changed, or the row belongs to another file"
            )
        other = seen.setdefault(digest, entry)
        if place_of(other) != place_of(entry):
            raise DataError(
                f"'{other.path}' ({other.where}, {place_of(other)}) and '{entry.path}' "
                f"({entry.where}, {place_of(entry)}) are the same image in two splits; keep one"
            )


@vipbench.hookimpl
def register_datasets(register: RegisterDataset) -> None:
    """Register `csv:PATH`."""
    columns = "path, label[, split | fold][, group][, sha256]"
    register("csv", CsvDataset, help=f"csv:PATH, a table of {columns}")
