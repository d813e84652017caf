"""`folder:PATH`: images in class folders, with or without train/val/test above them.

    PATH/<split>/<class>/…/<image>     split: train, val, test, as people write them (Training, dev)
    PATH/<class>/…/<image>             vipbench draws 60/10/30, stratified, with seed 1

Where train and test are there and val is not, a tenth of train is taken as val. Classes are in
natural order of their folders' names, in which underscores stand for spaces. Folders that all hold
folders of the same names are folds or splits of other names, and refused. A card
(`PATH/card.yaml`) may give display names, templates, symptoms, licence, …
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

import numpy as np

import vipbench
from vipbench.api.dataset import DataError, Dataset, Split
from vipbench.api.draw_split import draw_split, groups_by_content
from vipbench.datasets.reading.card import Card, find_card
from vipbench.datasets.reading.image_files import PassedOver
from vipbench.datasets.reading.paths import (
    find_source,
    images_below,
    listed,
    loose_images,
    natural_key,
    stable_name,
    visible_folders,
)
from vipbench.datasets.reading.spelling import clean, shown_apart, skeleton, split_of
from vipbench.errors import UsageError
from vipbench.hookspecs import RegisterDataset
from vipbench.images import IMAGE_SUFFIXES, VOLUME_HINT, VOLUMES, digest_image

_Listing = tuple[Sequence[Path], Sequence[int]]  # images and their labels
_LAYOUT = "expected <class>/<images>, or train/<class>/<images> and test/<class>/<images>"
_CLASSES = "If they are classes, state it in card.yaml: `class_names: {{'{0}': NAME}}`"
_FOLD = re.compile(r"(?:(?:cv|k)? ?folds?|cv|splits?|parts?|partitions?|batch|run)[ .-]?\d+")
RATIOS = (6, 1, 3)
SEED = 1


class FolderDataset(Dataset):
    """The folder `argument`; relative paths are looked for in the working directory, then in the
    data folder. class_names and caption are known once it is loaded."""

    class_names: tuple[str, ...] = ()
    takes_images = True
    revision = 2

    def __init__(self, argument: str | None) -> None:
        if not argument:
            raise UsageError("dataset 'folder' needs a folder: folder:PATH")
        self.argument = argument
        self.name = Path(argument).expanduser().resolve().name or "folder"

    def locate(self, root: Path | None) -> Path:
        """See Dataset."""
        return find_source(self.argument, root, "folder")

    def load(self, root: Path | None) -> Mapping[str, Split]:
        """List the images. Raises DataError naming folder and class."""
        return self.read(self.locate(root))

    def read(self, path: Path) -> Mapping[str, Split]:
        """List the images in the folder `path`. Raises DataError."""
        if not path.is_dir():
            raise DataError(f"'{path}' is not a folder; {_LAYOUT}")
        card = find_card(path / "card.yaml", path / "card.yml") or Card(path / "card.yaml")
        trusted = card.image_folders(self.image_root)
        folders = visible_folders(path, path, trusted)
        if not folders:
            raise DataError(f"folder '{path}' holds no folders; {_LAYOUT}")
        splits, notes = split_folders(path, folders, card.named(), trusted)
        passed = PassedOver(path)
        if splits:
            found, listings, loose = _read_splits(path, splits, trusted, passed)
        else:
            found, listing, loose = class_folders(path, path, folders, trusted, passed)
            listings = {"": listing}
        groups: dict[str, str] | None = None
        if card.group:
            every = [image for listing in listings.values() for image in listing[0]]
            groups, lacking = card.file_groups(dict(zip(_ids(path, every), every, strict=True)))
            notes += lacking
        how = "stratified" if groups is None else "in whole groups"
        if not splits:
            listings = _draw(path, found, listings[""], RATIOS, groups)
            ratios = "/".join(str(10 * r) for r in RATIOS)
            self.caption = f"Split {ratios} drawn by vipbench, {how}, seed {SEED}."
        self.notes = (*notes, *loose, *passed.notes())
        if "val" not in listings:
            drawn = _draw(path, found, listings["train"], (9, 1, 0), groups)
            listings |= {name: drawn[name] for name in ("train", "val")}
            self.caption = f"A tenth of train taken as val by vipbench, {how}, seed {SEED}."
        self.class_names = card.display_names(found)
        card.apply(self)
        made = {}
        for name, (images, labels) in listings.items():
            ids = _ids(path, images)
            own = None if groups is None else tuple(groups[one] for one in ids)
            made[name] = Split(images, np.array(labels, dtype=np.int64), ids, own)
        return made


def split_folders(
    path: Path, folders: Sequence[Path], named: Set[str] = frozenset(), trusted: Sequence[Path] = ()
) -> tuple[dict[str, Path], list[str]]:
    """Split -> folder, and sentences on how they were read; empty where the folders are classes.

    named: folders that the card calls classes, which settles it. Raises DataError for folders that
    are neither.
    """
    if any(clean(folder.name) in named for folder in folders):
        return {}, []
    found: dict[str, Path] = {}
    others = []
    for folder in folders:
        split = split_of(folder.name)
        if split is None:
            others.append(folder.name)
            continue
        if split in found:
            raise DataError(
                f"folder '{path}' holds '{found[split].name}' and '{folder.name}', which are the "
                "same split; keep one"
            )
        found[split] = folder
    if not found:
        return {}, _check_classes(path, folders, trusted)
    lacking = [name for name in ("train", "test") if name not in found]
    if lacking:
        beside = f" beside {listed(others)}" if others else ""
        raise DataError(
            f"folder '{path}' holds {listed(f.name for f in found.values())}{beside} but no "
            f"{listed(lacking)}; {_LAYOUT}. {_CLASSES.format(next(iter(found.values())).name)}"
        )
    notes = [
        f"folder '{folder.name}' is read as {split}"
        for split, folder in found.items()
        if split not in folder.name.lower()
    ]
    if others:
        are = "folders {} are not splits and" if len(others) > 1 else "folder {} is not a split and"
        notes.append(f"{are.format(listed(others))} left out; train, val and test are read")
    return found, notes


def _check_classes(path: Path, folders: Sequence[Path], trusted: Sequence[Path]) -> list[str]:
    """A sentence where folders that are read as classes share names of their folders. Raises
    DataError for folders that all hold the same folders, or are called folds and hold folders:
    these hold the classes, or the splits."""
    inside = [
        {skeleton(f.name) for f in visible_folders(folder, path, trusted)} for folder in folders
    ]
    same = len(folders) > 1 and all(names == inside[0] for names in inside)
    folds = all(_FOLD.fullmatch(skeleton(folder.name)) for folder in folders)
    if inside and len(inside[0]) > 1 and (same or folds) and all(inside):
        raise DataError(
            f"the folders {listed(f.name for f in folders)} of '{path}' hold folders of the same "
            f"names, {listed(sorted(inside[0]))}: they look like splits or folds, not like "
            f"classes; {_LAYOUT}, or a table with a column split (csv:PATH). "
            f"{_CLASSES.format(folders[0].name)}"
        )
    shared = set.intersection(*inside) if len(folders) > 1 else set()
    if len(shared) < 2:
        return []
    return [
        f"the folders {listed(f.name for f in folders)} are read as classes, and all hold folders "
        f"called {listed(sorted(shared))}; where they are sites or splits, write a table with the "
        "columns path, label and split (csv:PATH)"
    ]


def _read_splits(
    path: Path, splits: Mapping[str, Path], trusted: Sequence[Path], passed: PassedOver
) -> tuple[list[str], dict[str, _Listing], list[str]]:
    listings: dict[str, _Listing] = {}
    classes: dict[str, list[str]] = {}
    notes: list[str] = []
    for name, folder in splits.items():
        folders = visible_folders(folder, path, trusted)
        classes[name], listings[name], loose = class_folders(path, folder, folders, trusted, passed)
        notes += loose
    first = classes["train"]
    for name, found in classes.items():
        if found != first:
            extra, lacking = sorted(set(found) - set(first)), sorted(set(first) - set(found))
            parts = [f"also has {listed(extra)}"] if extra else []
            parts += [f"lacks {listed(lacking)}"] if lacking else []
            raise DataError(
                f"the classes of '{splits[name]}' and '{splits['train']}' differ: the first "
                f"{' and '.join(parts)}; every split needs the same class folders"
            )
    return first, listings, notes


def class_folders(
    path: Path,
    parent: Path,
    folders: Sequence[Path],
    trusted: Sequence[Path],
    passed: PassedOver,
) -> tuple[list[str], _Listing, list[str]]:
    """Classes, images and labels in the class folders `folders` of `parent`, below `path`, and
    sentences on what was left out beside them; what was left out within them goes to `passed`."""
    if len(folders) < 2:
        raise DataError(
            f"folder '{parent}' holds {len(folders)} class folders; expected two or more. {_LAYOUT}"
            + "".join(f"; is folder:{inner} meant?" for inner in folders)
        )
    folders = sorted(folders, key=lambda folder: natural_key(clean(folder.name)))
    images: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        mine, others = images_below(folder, path, trusted)
        if not mine:
            kinds = sorted({other.suffix.lower() or other.name for other in others})
            seen = f" (it holds {listed(kinds)} files)" if others else ""
            raise DataError(
                f"class folder '{folder}' holds no images{seen}; looked for "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}, in any case{_volumes(others)}"
            )
        mine = passed.take(folder, mine, others)
        images += mine
        labels += [label] * len(mine)
    names = [clean(folder.name) for folder in folders]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        same = [folder.name for folder in folders if clean(folder.name) == twice]
        raise DataError(
            f"the class folders {shown_apart(same)} of '{parent}' look alike; merge them into one"
        )
    loose = loose_images(parent, path, trusted)
    note = f"{len(loose)} image files in '{parent.name}' lie in no class folder and are left out"
    return names, (images, labels), [note] if loose else []


def _volumes(files: Sequence[Path]) -> str:
    volumes = any(file.name.lower().endswith(VOLUMES) for file in files)
    return f"; NIfTI {VOLUME_HINT}" if volumes else ""


def _draw(
    path: Path,
    found: Sequence[str],
    listing: _Listing,
    ratios: tuple[int, int, int],
    groups: Mapping[str, str] | None,
) -> dict[str, _Listing]:
    """Splits drawn by the images' content: a path changes with the names of class folders. groups:
    of each id its group, where there are some."""
    images, labels = listing
    content = [digest_image(image) for image in images]
    own = None
    if groups is not None:
        own = groups_by_content([groups[one] for one in _ids(path, images)], content)
    try:
        drawn = draw_split(labels, content, found, ratios, SEED, own)
    except DataError as error:
        raise DataError(f"folder '{path}' cannot be split: {error}") from error
    return {
        name: ([images[i] for i in indices], [labels[i] for i in indices])
        for name, indices in drawn.items()
    }


def _ids(path: Path, images: Sequence[Path]) -> tuple[str, ...]:
    return tuple(stable_name(image, path) for image in images)


@vipbench.hookimpl
def register_datasets(register: RegisterDataset) -> None:
    """Register `folder:PATH`."""
    register("folder", FolderDataset, help="folder:PATH, images in class folders")
