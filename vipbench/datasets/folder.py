"""`folder:PATH`: images in class folders, with or without train/val/test above them.

    PATH/<split>/<class>/…/<image>     split: train, val (valid, validation), test
    PATH/<class>/…/<image>             vipbench draws 60/10/30, stratified, with seed 1

Where train and test are there and val is not, a tenth of train is taken as val. Classes are in
natural order of their folders' names, in which underscores stand for spaces. A card
(`PATH/card.yaml`) may give display names, templates, symptoms, licence, …
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import vipbench
from vipbench.api.dataset import DataError, Dataset, Split
from vipbench.datasets.reading.card import Card, find_card
from vipbench.datasets.reading.draw_split import draw_split
from vipbench.datasets.reading.paths import (
    IMAGE_SUFFIXES,
    find_source,
    images_below,
    listed,
    stable_name,
    visible_folders,
)
from vipbench.errors import UsageError
from vipbench.hookspecs import RegisterDataset

_Listing = tuple[Sequence[Path], Sequence[int]]  # images and their labels
_SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_LAYOUT = "expected <class>/<images>, or train/<class>/<images> and test/<class>/<images>"
RATIOS = (6, 1, 3)
SEED = 1


class FolderDataset(Dataset):
    """The folder `argument`; relative paths are looked for in the working directory, then in the
    data folder. class_names and caption are known once it is loaded."""

    class_names: tuple[str, ...] = ()

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
        folders = visible_folders(path, path)
        if not folders:
            raise DataError(f"folder '{path}' holds no folders; {_LAYOUT}")
        splits = split_folders(path, folders)
        if splits:
            found, listings = _read_splits(path, splits)
        else:
            found, listing = class_folders(path, path, folders)
            listings = _draw(path, found, listing, RATIOS)
            ratios = "/".join(str(10 * r) for r in RATIOS)
            self.caption = f"Split {ratios} drawn by vipbench, stratified, seed {SEED}."
        if "val" not in listings:
            drawn = _draw(path, found, listings["train"], (9, 1, 0))
            listings |= {name: drawn[name] for name in ("train", "val")}
            self.caption = f"A tenth of train taken as val by vipbench, stratified, seed {SEED}."
        self.class_names = card.display_names(found)
        card.apply(self)
        return {
            name: Split(images, np.array(labels, dtype=np.int64), _ids(path, images))
            for name, (images, labels) in listings.items()
        }


def split_folders(path: Path, folders: Sequence[Path]) -> dict[str, Path]:
    """Split -> folder; empty where the folders are classes."""
    found: dict[str, Path] = {}
    for folder in folders:
        split = _SPLIT_NAMES.get(folder.name.lower())
        if split is None:
            continue
        if split in found:
            raise DataError(
                f"folder '{path}' holds '{found[split].name}' and '{folder.name}', which are the "
                "same split; keep one"
            )
        found[split] = folder
    missing = [name for name in ("train", "test") if name not in found]
    if found and missing:
        raise DataError(
            f"folder '{path}' holds {listed(f.name for f in found.values())} but no "
            f"{listed(missing)}; {_LAYOUT}"
        )
    return found


def _read_splits(path: Path, splits: Mapping[str, Path]) -> tuple[list[str], dict[str, _Listing]]:
    listings: dict[str, _Listing] = {}
    classes: dict[str, list[str]] = {}
    for name, folder in splits.items():
        classes[name], listings[name] = class_folders(path, folder, visible_folders(folder, path))
    first = classes["train"]
    for name, found in classes.items():
        if found != first:
            extra, missing = sorted(set(found) - set(first)), sorted(set(first) - set(found))
            parts = [f"also has {listed(extra)}"] if extra else []
            parts += [f"lacks {listed(missing)}"] if missing else []
            raise DataError(
                f"the classes of '{splits[name]}' and '{splits['train']}' differ: the first "
                f"{' and '.join(parts)}; every split needs the same class folders"
            )
    return first, listings


def class_folders(path: Path, parent: Path, folders: Sequence[Path]) -> tuple[list[str], _Listing]:
    """Classes, images and labels in the class folders `folders` of `parent`, below `path`."""
    if len(folders) < 2:
        raise DataError(
            f"folder '{parent}' holds {len(folders)} class folders; expected two or more. {_LAYOUT}"
        )
    images: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        mine, others = images_below(folder, path)
        if not mine:
            seen = f" (it holds {listed(sorted(others))} files)" if others else ""
            raise DataError(
                f"class folder '{folder}' holds no images{seen}; looked for "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}, in any case"
            )
        images += mine
        labels += [label] * len(mine)
    return [folder.name for folder in folders], (images, labels)


def _draw(
    path: Path, found: Sequence[str], listing: _Listing, ratios: tuple[int, int, int]
) -> dict[str, _Listing]:
    images, labels = listing
    try:
        drawn = draw_split(labels, _ids(path, images), found, ratios, SEED)
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
