"""`vipbench dataset split`: a drawn split as a file."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vipbench.api.dataset import SPLITS, DataError
from vipbench.cli.exit_codes import OK
from vipbench.datasets.csv_manifest import card_of, check_digests, image_folders
from vipbench.datasets.folder import class_folders, split_folders
from vipbench.datasets.reading.card import Card, check_file_group, find_card
from vipbench.datasets.reading.image_files import PassedOver
from vipbench.datasets.reading.manifest import Entry, classes_of, read_manifest
from vipbench.datasets.reading.paths import find_source, visible_folders
from vipbench.datasets.reading.rows import Row, draw_row_folds, draw_rows, locate, make_splits
from vipbench.engine.planning.pixels import examine
from vipbench.errors import UsageError
from vipbench.files import replacing, write
from vipbench.images import FROM_DICOM, ImageError
from vipbench.runspec.values import path_flags
from vipbench.runspec.yaml import dump_yaml, read_yaml
from vipbench.text import clean, columns, plural


def split_command(
    source: str,
    root: Path | None,
    group: str | None,
    ratios: str | None,
    seed: int,
    out: Path | None,
    images: Sequence[str] = (),
    folds: int | None = None,
) -> int:
    """Write the split and say how many images it has. Raises UsageError."""
    from vipbench.api import DataError

    folders = list(path_flags(images, [source], "--images").values())
    if len(folders) > 1:
        raise UsageError("--images is given twice; expected one folder")
    if folds is not None and ratios is not None:
        raise UsageError(f"--folds {folds} gives folds of equal size; leave out --ratios {ratios}")
    given = folders[0] if folders else None
    parts = parse_ratios(ratios or "6/1/3")
    try:
        written = write_split(source, root, group, parts, seed, out, given, folds)
    except (DataError, ImageError) as error:
        raise UsageError(str(error)) from None
    for line in columns(
        [["class", *written.parts], *([name, *n] for name, n in written.counts.items())]
    ):
        print(line)
    for note in written.notes:
        print(f"note: {clean(note)}")
    groups = "" if written.groups is None else f", {plural(written.groups, 'group')}"
    with_images = "" if given is None else f" --images {shlex.quote(str(given))}"
    card = "" if written.card is None else f", and its card {written.card}"
    print(f"Wrote {written.path}{groups}{card}; use it as csv:{written.path}{with_images}")
    return OK


@dataclass(frozen=True)
class WrittenSplit:
    """The manifest and the card that were written, the splits or folds of the manifest, the images
    of each class in these, and what was done with odd input."""

    path: Path
    parts: tuple[str, ...]
    counts: dict[str, list[int]]
    groups: int | None
    card: Path | None = None
    notes: Sequence[str] = ()


def parse_ratios(text: str) -> tuple[float, float, float]:
    """`6/1/3` -> (6, 1, 3): train, val, test. Raises UsageError."""
    try:
        train, val, test = (float(part) for part in text.split("/"))
    except ValueError:
        train = val = test = -1
    if not (0 < train < float("inf") and 0 <= val < float("inf") and 0 < test < float("inf")):
        raise UsageError(
            f"ratios are '{text}'; expected train/val/test, for instance 6/1/3, train and test "
            "above 0"
        )
    return train, val, test


def write_split(
    source: str,
    root: Path | None = None,
    group: str | None = None,
    ratios: tuple[float, float, float] = (6, 1, 3),
    seed: int = 1,
    out: Path | None = None,
    images: Path | None = None,
    folds: int | None = None,
) -> WrittenSplit:
    """Draw a stratified split of `csv:PATH` or `folder:PATH` by its images' content, or so many
    `folds`, and write it beside the data.

    group: the column with patient or lesion ids, or `dicom:PatientID`; no group is in two splits.
    out: the manifest to write, in the folder of the data; by default `STEM-split.csv` or
    `STEM-folds.csv`, without `STEM-` in the folder. images: the folder that a table's images are
    below, where they are not beside it. The card is copied beside it. Raises UsageError or
    DataError for what a run would refuse; overwrites nothing.
    """
    kind, _, argument = source.partition(":")
    word = "split" if folds is None else "folds"
    if kind == "csv" and argument:
        path = find_source(argument, root, "manifest")
        card, entries, files, notes = _from_manifest(path, group, images)
        base, default = path.parent, path.with_name(f"{path.stem}-{word}.csv")
    elif kind == "folder" and argument:
        base = find_source(argument, root, "folder")
        card, entries, files, notes = _from_folder(base, group, images)
        default = base / f"{word}.csv"
    else:
        raise UsageError(f"'{source}' cannot be split; expected csv:PATH or folder:PATH")
    target = out or default
    if target.parent.resolve() != base.resolve():
        raise UsageError(
            f"'{target}' is not in '{base}'; the manifest's paths are relative to "
            f"that folder, so write it there"
        )
    copied = target.with_suffix(".yaml")
    for file in (target, copied):
        if file.exists():
            raise UsageError(f"'{file}' exists; remove it, or name another file with --out")
    if card.group:
        of_files, lacking = card.file_groups(files)
        entries = [replace(entry, group=of_files[entry.path]) for entry in entries]
        notes = [*notes, *lacking]
    classes = classes_of(entries)
    card.display_names(classes)
    labels = [classes.index(entry.label) for entry in entries]
    rows = [
        Row(entry.path, label, entry.where, entry.group)
        for entry, label in zip(entries, labels, strict=True)
    ]
    # What a run would refuse of the images is refused here, too.
    examine(make_splits({"train": rows}, files), card.pixels)
    if folds is None:
        drawn = draw_rows(rows, classes, files, ratios, seed)
        named = [replace(entries[i], split=name) for name in SPLITS for i in drawn[name]]
    else:
        drawn = draw_row_folds(rows, classes, files, folds, seed)
        named = [
            replace(entries[i], fold=name.removeprefix("fold-"))
            for name in drawn
            for i in drawn[name]
        ]
    where = {entry.where: files[entry.path] for entry in entries}
    check_digests(named, where, lambda entry: entry.split or f"fold {entry.fold}")
    _write(target, named)
    has_card = card.path.suffix in (".yaml", ".yml") and _copy_card(card, copied)
    places = {int(i): s for s, name in enumerate(drawn) for i in drawn[name]}
    counts = {name: [0] * len(drawn) for name in classes}
    for i, label in enumerate(labels):
        counts[classes[label]][places[i]] += 1
    grouped = any(entry.group is not None for entry in entries)
    groups = len({entry.group or entry.path for entry in entries}) if grouped else None
    card_there = copied if has_card else None
    return WrittenSplit(target, tuple(drawn), counts, groups, card_there, notes)


# The card, the rows, the file of each row's path, and notes.
_Found = tuple[Card, list[Entry], dict[str, Path], Sequence[str]]


def _from_manifest(path: Path, group: str | None, images: Path | None) -> _Found:
    card = _grouped(card_of(path), group)
    manifest = read_manifest(path, card, None if card.group else group)
    if manifest.has_split or manifest.has_folds:
        there = "a split" if manifest.has_split else "folds"
        raise UsageError(
            f"manifest '{path}' has {there} already; remove the column to draw a new one"
        )
    rows = [Row(entry.path, 0, entry.where) for entry in manifest.entries]
    found, named = locate(image_folders(path, card, images), {"train": rows, "val": [], "test": []})
    files = {row.path: named[place.path] for row, place in zip(rows, found["train"], strict=True)}
    return card, manifest.entries, files, manifest.notes


def _grouped(card: Card, group: str | None) -> Card:
    """The card, with the groups of the command line."""
    if group is not None and group.startswith(FROM_DICOM):
        check_file_group(group, "--group")
        return replace(card, group=group)
    return card if group is None else replace(card, group="")


def _from_folder(path: Path, group: str | None, images: Path | None) -> _Found:
    found_card = find_card(path / "card.yaml", path / "card.yml") or Card(path)
    card = _grouped(found_card, group)
    if group is not None and not card.group:
        raise UsageError(
            f"'{path}' is a folder, so it has no column '{group}'; write a table path,label,group "
            f"and split it (csv:PATH), or give {FROM_DICOM}PatientID for DICOM files"
        )
    trusted = card.image_folders(images)
    folders = visible_folders(path, path, trusted)
    if split_folders(path, folders, card.named(), trusted)[0]:
        raise UsageError(f"'{path}' has a split already: its folders train and test")
    passed = PassedOver(path)
    found, (listed_images, labels), notes = class_folders(path, path, folders, trusted, passed)
    entries = [
        Entry(
            f"folder '{path}'", image.relative_to(path).as_posix(), found[label], None, None, None
        )
        for image, label in zip(listed_images, labels, strict=True)
    ]
    files = {entry.path: image for entry, image in zip(entries, listed_images, strict=True)}
    return card, entries, files, [*notes, *passed.notes()]


def _write(path: Path, entries: Sequence[Entry]) -> None:
    columns = ["path", "label"]
    columns += [
        c
        for c in ("split", "fold", "group", "sha256")
        if any(getattr(e, c) is not None for e in entries)
    ]
    try:
        with replacing(path) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows([getattr(entry, c) or "" for c in columns] for entry in entries)
    except OSError as error:
        raise DataError(f"'{path}' cannot be written: {error.strerror}") from error


def _copy_card(card: Card, target: Path) -> bool:
    """The card without `columns` and `group`: the new manifest has columns of its own. False where
    nothing is left of it."""
    given = read_yaml(card.path, "card").value
    card_keys = {k: v for k, v in given.items() if k not in ("columns", "group")}
    if card_keys:
        write(target, dump_yaml(card_keys))
    return bool(card_keys)
