"""Images that a file lists: checking the rows and finding the files, with errors by row."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from vipbench.api.dataset import SPLITS, DataError, Split
from vipbench.api.draw_split import (
    Indices,
    draw_folds,
    draw_split,
    groups_by_content,
)
from vipbench.datasets.reading.image_folders import ImageFolders
from vipbench.datasets.reading.paths import listed
from vipbench.images import digest_image


@dataclass(frozen=True)
class Row:
    """An image as a file lists it: path relative to the image folder, label, group, and where
    it is listed (file and row), for messages."""

    path: str
    label: int
    where: str
    group: str | None = None


Rows = Mapping[str, Sequence[Row]]


def locate(folders: ImageFolders, rows: Rows) -> tuple[dict[str, list[Row]], dict[str, Path]]:
    """The rows with each path as the name of its image, and name -> file.

    Raises DataError for an image that is listed twice, lies outside of the folders, is missing, or
    is there under a name of other case.
    """
    named: dict[str, list[Row]] = {name: [] for name in rows}
    files: dict[str, Path] = {}
    lost: list[Row] = []
    for split in rows:
        for row in rows[split]:
            place = folders.find(row.path, row.where)
            if place is None:
                lost.append(row)
                continue
            known = files.setdefault(place.name, place.file)
            if known != place.file and known.resolve() != place.file.resolve():
                raise DataError(
                    f"{row.where}: '{place.file}' and '{known}' both have the name "
                    f"'{place.name}' below their folders; rename one"
                )
            named[split].append(replace(row, path=place.name))
    if lost:
        raise _missing(folders, lost)
    _check_once(named)
    return named, files


def make_splits(rows: Rows, files: Mapping[str, Path]) -> dict[str, Split]:
    """Splits of the rows that `locate` gave, in their order. Where some have a group, an image
    without one is a group of its own."""
    grouped = any(row.group is not None for name in rows for row in rows[name])
    return {name: _split(rows[name], files, grouped) for name in rows}


def take_val(
    rows: Rows, class_names: Sequence[str], files: Mapping[str, Path], seed: int = 1
) -> tuple[dict[str, list[Row]], str]:
    """Take a tenth of train as val, stratified, whole groups where there are groups; and the
    sentence that says so. files: those of the rows' paths, as `locate` gives them."""
    train = list(rows["train"])
    drawn = draw_rows(train, class_names, files, (9, 1, 0), seed)
    taken = {name: [train[i] for i in drawn[name]] for name in ("train", "val")}
    how = "whole groups" if any(row.group is not None for row in train) else "stratified"
    note = f"A tenth of train taken as val by vipbench, {how}, seed {seed}."
    return {**taken, "test": list(rows["test"])}, note


def draw_rows(
    rows: Sequence[Row],
    class_names: Sequence[str],
    files: Mapping[str, Path],
    ratios: tuple[float, float, float],
    seed: int,
) -> dict[str, Indices]:
    """`draw_split` of rows by their images' content, as support sets are drawn: an image is known
    by its digest, a group by the smallest of its images'. Names and order have no say."""
    digests, groups = _by_content(rows, files)
    labels = [row.label for row in rows]
    return draw_split(labels, digests, class_names, ratios, seed, groups)


def draw_row_folds(
    rows: Sequence[Row],
    class_names: Sequence[str],
    files: Mapping[str, Path],
    count: int,
    seed: int,
) -> dict[str, Indices]:
    """The same of `draw_folds`; images of equal content are in one fold."""
    digests, groups = _by_content(rows, files)
    labels = [row.label for row in rows]
    return draw_folds(labels, groups or digests, class_names, count, seed)


def _by_content(
    rows: Sequence[Row], files: Mapping[str, Path]
) -> tuple[list[str], list[str] | None]:
    """The digest of each image, and of its group the smallest; no groups where no row has one."""
    digests = [digest_image(files[row.path]) for row in rows]
    if all(row.group is None for row in rows):
        return digests, None
    return digests, groups_by_content([row.group or row.path for row in rows], digests)


def with_groups(rows: Rows, groups: Mapping[str, str]) -> dict[str, list[Row]]:
    """The same rows with the group of each path."""
    return {n: [replace(row, group=groups[row.path]) for row in rows[n]] for n in rows}


def ordered(rows: Rows) -> dict[str, list[Row]]:
    """By class and file name: an order, and so support sets, that no layout changes."""
    return {
        name: sorted(rows[name], key=lambda row: (row.label, PurePosixPath(row.path).name))
        for name in SPLITS
    }


def _check_once(rows: Rows) -> None:
    seen: dict[str, tuple[str, Row]] = {}
    for name in rows:
        for row in rows[name]:
            if row.path not in seen:
                seen[row.path] = name, row
                continue
            other, first = seen[row.path]
            if other != name:
                what = f"in two splits, {other} ({first.where}) and {name} ({row.where})"
            elif first.label != row.label:
                what = f"listed with two classes: {first.where} and {row.where}"
            else:
                what = f"listed twice: {first.where} and {row.where}"
            raise DataError(f"image '{row.path}' is {what}; keep one")


def _missing(folders: ImageFolders, lost: Sequence[Row]) -> DataError:
    first, home = lost[0], folders.folders[0]
    for folder in folders.folders:
        other = _other_spelling(folder, first.path)
        if other is not None:
            return DataError(
                f"{first.where}: image '{first.path}' exists as '{other}'; names must agree in "
                f"case and accents: rename one of the two"
            )
    more = f", and {len(lost) - 1} more: {listed((r.path for r in lost[1:]), 3)}"
    return DataError(
        f"{first.where}: image '{home / first.path}' is missing{more if len(lost) > 1 else ''}; "
        f"{folders.why_missing(first.path)}"
    )


def _other_spelling(base: Path, relative: str) -> str | None:
    """The path as it is on the disk, where that differs in case or accents alone."""
    current, parts = base, []
    for part in Path(relative).parts:
        if not current.is_dir():
            return None
        names = {_plain(entry.name): entry.name for entry in current.iterdir()}
        if (current / part).exists():
            found = part
        elif _plain(part) in names:
            found = names[_plain(part)]
        else:
            return None
        parts.append(found)
        current /= found
    return None if parts == list(Path(relative).parts) else "/".join(parts)


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _split(rows: Sequence[Row], files: Mapping[str, Path], grouped: bool) -> Split:
    groups = tuple(row.group or row.path for row in rows) if grouped else None
    return Split(
        [files[row.path] for row in rows],
        np.array([row.label for row in rows], dtype=np.int64),
        tuple(row.path for row in rows),
        groups,
    )
