"""`npz:PATH`: one file with {train,val,test}_{images,labels}, as MedMNIST v2 publishes them.

Classes are named by a card beside the file (`STEM.yaml`: `class_names: [...]`), by an array
`class_names` in the file, or by a file name that names a MedMNIST set (`pneumoniamnist_64.npz`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import vipbench
from vipbench.api.dataset import SPLITS, DataError, Dataset, Split
from vipbench.datasets.reading import medmnist_files as _medmnist
from vipbench.datasets.reading.card import Card, find_card
from vipbench.datasets.reading.npz_file import LazyImages, Member, read_members
from vipbench.datasets.reading.paths import counts_note, find_source, listed
from vipbench.errors import UsageError
from vipbench.hookspecs import RegisterDataset
from vipbench.symptoms import shipped_symptoms

KEYS = tuple(f"{split}_{part}" for split in SPLITS for part in ("images", "labels"))


class NpzDataset(Dataset):
    """The file `argument`; relative paths are looked for in the working directory, then in the
    data folder. class_names and what follows from them are known once it is loaded."""

    def __init__(self, argument: str | None) -> None:
        if not argument:
            raise UsageError("dataset 'npz' needs a file: npz:PATH, for instance npz:data/x.npz")
        self.argument = argument
        self.name = Path(argument).stem
        flag, _ = _medmnist.recognise(self.name)
        if flag in _medmnist.REFUSED:
            raise UsageError(f"'{argument}' cannot be read: {flag} {_medmnist.REFUSED[flag]}")
        self.fact = _medmnist.MEDMNIST.get(flag or "")
        self.class_names = () if self.fact is None else self.fact.class_names

    def locate(self, root: Path | None) -> Path:
        """See Dataset."""
        return find_source(self.argument, root, "file")

    def load(self, root: Path | None) -> Mapping[str, Split]:
        """Read headers and labels; images are read when they are asked for."""
        return self.read(self.locate(root))

    def read(self, path: Path) -> Mapping[str, Split]:
        """Read the file `path`. Raises DataError."""
        if path.is_dir():
            raise DataError(f"'{path}' is a folder; expected an .npz file (folder:PATH reads one)")
        card = find_card(*(path.with_suffix(s) for s in (".yaml", ".yml")))
        members = read_members(path)
        missing = [key for key in KEYS if key not in members]
        if missing:
            raise DataError(
                f"'{path}' lacks the arrays {listed(missing, 6)}; it holds "
                f"{listed(members, 12) or 'none'}; expected {', '.join(KEYS)}"
            )
        self.class_names = self._names(path, members, card)
        splits = {name: self._split(path, name, members) for name in SPLITS}
        self._describe(splits, card)
        return splits

    def _names(self, path: Path, members: Mapping[str, Member], card: Card | None) -> Any:
        if card is not None and card.class_names is not None:
            if isinstance(card.class_names, dict):
                raise DataError(
                    f"card '{card.path}': class_names is a mapping; expected a list in the order "
                    "of the labels, [name of label 0, name of label 1, ...]"
                )
            return card.class_names
        if "class_names" in members:
            names = members["class_names"].read()
            if names.dtype.kind != "U" or names.ndim != 1:
                raise DataError(
                    f"'{path}': class_names is an array of {names.shape} {names.dtype}; expected "
                    "texts, one for each label"
                )
            texts = tuple(str(name).replace("_", " ").strip() for name in names.tolist())
            if len({text.casefold() for text in texts}) < len(texts) or not all(texts):
                raise DataError(f"'{path}': class_names {list(texts)} must be texts that differ")
            return texts
        if self.fact is not None:
            return self.fact.class_names
        raise DataError(
            f"'{path}' does not name its classes; write a card "
            f"'{path.with_suffix('.yaml').name}' beside it with the line `class_names: [name of "
            "label 0, name of label 1, ...]`"
        )

    def _split(self, path: Path, name: str, members: Mapping[str, Member]) -> Split:
        images = members[f"{name}_images"]
        shape = images.shape
        planes = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
        if not planes or images.dtype != np.uint8 or 0 in shape[1:]:
            raise DataError(
                f"'{path}': {name}_images is {shape} of {images.dtype}; expected (N,H,W) or "
                "(N,H,W,3) of uint8"
            )
        labels = _labels(path, f"{name}_labels", members, shape[0], self.class_names)
        for c, count in enumerate(np.bincount(labels, minlength=len(self.class_names))):
            if count == 0 and name != "val":
                raise DataError(f"'{path}': class '{self.class_names[c]}' has no {name} image")
        ids = tuple(f"{name}/{i}" for i in range(shape[0]))
        return Split(LazyImages(images), labels, ids)

    def _describe(self, splits: Mapping[str, Split], card: Card | None) -> None:
        fact = self.fact
        if fact is not None:
            self.licence, self.citation = fact.licence, _medmnist.CITATION
            self.sharing = "local" if "NC" in fact.licence else "allowed"
            self.caption = f"{fact.title} of MedMNIST v2."
            note = counts_note(splits, fact.counts)
            self.caption += f" {note}" if note else ""
            if fact.warning:
                self.caption += f" {fact.warning}"
            self.templates = (fact.template,)
            if self.class_names == fact.class_names:
                self.symptoms = shipped_symptoms(fact.flag, self.class_names)
        if card is not None:
            card.apply(self)


def _labels(
    path: Path, key: str, members: Mapping[str, Member], n: int, names: Sequence[str]
) -> npt.NDArray[np.int64]:
    member = members[key]
    shape = member.shape
    if len(shape) == 2 and shape[0] == n and shape[1] > 1:
        raise DataError(
            f"'{path}': {key} has {shape[1]} columns: the set is multi-label; expected one label "
            "for each image, (N,) or (N,1)"
        )
    if shape not in ((n,), (n, 1)):
        raise DataError(f"'{path}': {key} is {shape}, for {n} images; expected ({n},) or ({n},1)")
    if member.dtype.kind not in "iu":
        raise DataError(f"'{path}': {key} is of type {member.dtype}; expected integers")
    labels = member.read().reshape(-1)
    wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(wrong):
        raise DataError(
            f"'{path}': {key}[{wrong[0]}] is {labels[wrong[0]]}, out of range; expected 0 to "
            f"{len(names) - 1}, for the classes {listed(names, 20)}"
        )
    return labels.astype(np.int64)


@vipbench.hookimpl
def register_datasets(register: RegisterDataset) -> None:
    """Register `npz:PATH`."""
    register("npz", NpzDataset, help="npz:PATH, an .npz file in the form of MedMNIST")
