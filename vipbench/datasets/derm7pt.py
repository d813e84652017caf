"""`derm7pt[:binary|:5-way]`: dermoscopic images of the seven-point checklist dataset.

Three layouts are read: the official release (`meta/meta.csv`, `images/`); a split file
(`split_skin.json`) with its images; class folders (`image/{train,val,test}/{melanoma,nevus}`).
The binary task is every melanoma against every nevus. Images are in the order of class and
file name, so that all layouts give the same support sets.

Kawahara et al. 2019, IEEE J-BHI 23(2), 538-546.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import vipbench
from vipbench.api.dataset import DataError, Dataset, Split
from vipbench.datasets.reading.card import Card
from vipbench.datasets.reading.class_folders import read_class_folders
from vipbench.datasets.reading.image_folders import ImageFolders
from vipbench.datasets.reading.paths import counts_note, data_folder, first_with, listed
from vipbench.datasets.reading.rows import Row, locate, make_splits, ordered
from vipbench.datasets.reading.split_json import find_image_folder, read_split_json
from vipbench.errors import unknown
from vipbench.hookspecs import RegisterDataset
from vipbench.symptoms import shipped_symptoms

HOME = "https://derm.cs.sfu.ca"

# The release's 20 diagnoses by the five groups of its paper.
GROUPS: dict[str, tuple[str, ...]] = {
    "BCC": ("basal cell carcinoma",),
    "NEV": (
        "blue nevus",
        "clark nevus",
        "combined nevus",
        "congenital nevus",
        "dermal nevus",
        "recurrent nevus",
        "reed or spitz nevus",
    ),
    "MEL": (
        "melanoma",
        "melanoma (in situ)",
        "melanoma (less than 0.76 mm)",
        "melanoma (0.76 to 1.5 mm)",
        "melanoma (more than 1.5 mm)",
        "melanoma metastasis",
    ),
    "MISC": ("dermatofibroma", "lentigo", "melanosis", "miscellaneous", "vascular lesion"),
    "SK": ("seborrheic keratosis",),
}
GROUP_OF = {diagnosis: group for group, every in GROUPS.items() for diagnosis in every}

# Task -> group -> class name, in the order of the labels; images in train, val, test.
TASKS: dict[str, tuple[str, dict[str, str], tuple[int, int, int]]] = {
    "binary": ("derm7pt", {"MEL": "melanoma", "NEV": "nevus"}, (346, 161, 320)),
    "5-way": (
        "derm7pt-5way",
        {
            "BCC": "basal cell carcinoma",
            "NEV": "nevus",
            "MEL": "melanoma",
            "MISC": "miscellaneous lesion",
            "SK": "seborrheic keratosis",
        },
        (413, 203, 395),
    ),
}
SPLIT_FILES = ("split_skin.json", "split_derm7pt.json")
INDEX_FILES = {"train": "train_indexes.csv", "val": "valid_indexes.csv", "test": "test_indexes.csv"}


class Derm7ptDataset(Dataset):
    """The binary task (`argument` None or "binary") or the one with five classes ("5-way")."""

    templates = ("a dermoscopy image of a {}.",)
    licence = "for research and education after registration (derm.cs.sfu.ca); no redistribution"
    citation = (
        "Kawahara J, Daneshvar S, Argenziano G, Hamarneh G. Seven-point checklist and skin lesion "
        "classification using multitask multimodal neural nets. IEEE J-BHI 23(2), 538-546 (2019)."
    )

    takes_images = True

    def __init__(self, argument: str | None) -> None:
        task = "binary" if argument is None else argument
        if task not in TASKS:
            raise unknown("task of derm7pt", task, TASKS, "Write derm7pt or derm7pt:5-way.")
        self.name, self.groups, self.published = TASKS[task]
        self.class_names = tuple(self.groups.values())
        self.symptoms = shipped_symptoms(self.name, self.class_names)

    def load(self, root: Path | None) -> Mapping[str, Split]:
        """Read the layout that is there. Raises DataError naming file and row."""
        base, named = self.locate(root), Card(Path()).image_folders(self.image_root)
        if (base / "meta").is_dir():
            rows = self._official(base)
        elif base.is_file():
            rows = self._split_file(base)
            base = base.parent if named else find_image_folder(base, rows)
        else:
            rows = ordered(read_class_folders(base, {"melanoma": 0, "nevus": 1}, named))
        splits = make_splits(*locate(ImageFolders([*named, base]), rows))
        self.caption = counts_note(splits, self.published)
        return splits

    def locate(self, root: Path | None) -> Path:
        """The official release's folder, else a split file, else the folder with train/."""
        folder = data_folder(root)
        places = [folder / name for name in ("derm7pt", "Derm7pt", "derm7pt_vip", "skin", "")]
        official = first_with([*(p / "release_v0" for p in places), *places], "meta/meta.csv")
        if official is not None:
            return official
        if self.name == "derm7pt":
            for place in places:
                for name in SPLIT_FILES:
                    if (place / name).is_file():
                        return place / name
            found = first_with([*(p / "image" for p in places), *places], "train/melanoma")
            if found is not None:
                return found
        raise DataError(self._missing(places))

    def _official(self, release: Path) -> dict[str, list[Row]]:
        meta = release / "meta" / "meta.csv"
        cases = _column(meta, ("diagnosis", "derm"))
        labels = {group: label for label, group in enumerate(self.groups)}
        rows: dict[str, list[Row]] = {}
        used: dict[int, str] = {}
        for split, name in INDEX_FILES.items():
            file = meta.with_name(name)
            rows[split] = []
            for where, (text,) in _column(file, ("indexes",)):
                index = _index(text, where, len(cases))
                if index in used:
                    raise DataError(f"{where}: index {index} is used already: {used[index]}")
                used[index] = where
                at, (diagnosis, derm) = cases[index]
                if diagnosis.lower() not in GROUP_OF:
                    raise DataError(f"{at}: {unknown('diagnosis', diagnosis, GROUP_OF)}")
                label = labels.get(GROUP_OF[diagnosis.lower()])
                if label is not None:
                    rows[split].append(Row(f"images/{derm}", label, at))
        return ordered(rows)

    def _split_file(self, path: Path) -> dict[str, list[Row]]:
        names, rows = read_split_json(path)
        if names != self.class_names:
            raise DataError(
                f"split file '{path}' has the classes {listed(names)}; expected "
                f"{listed(self.class_names)}, in this order"
            )
        return ordered(rows)

    def _missing(self, places: Sequence[Path]) -> str:
        wanted = "release_v0/meta/meta.csv (official release, from registration)"
        if self.name == "derm7pt":
            wanted += f", {SPLIT_FILES[0]} beside its images, or image/train/melanoma/"
        return (
            f"derm7pt is missing; looked for {wanted} in {listed(map(str, places))}. "
            f"Get it from {HOME} (licence: {self.licence}); --data-root names the folder of "
            "your data"
        )


def _column(path: Path, wanted: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """The wanted columns of a CSV file of the release, each row with its place."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in wanted if name not in header]
            if missing:
                raise DataError(
                    f"'{path}' has no column {listed(missing)}; its columns are "
                    f"{listed(header, 20) or 'none'}"
                )
            places = [header.index(name) for name in wanted]
            found = []
            for row in filter(None, reader):
                where = f"'{path}', row {reader.line_num}"
                if len(row) <= max(places) or not all(row[i].strip() for i in places):
                    raise DataError(f"{where} has no {' or '.join(wanted)}")
                found.append((where, tuple(row[i].strip() for i in places)))
            return found
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' is not a CSV file in UTF-8: {error}") from error


def _index(text: str, where: str, n: int) -> int:
    if not text.isdecimal() or int(text) >= n:
        raise DataError(
            f"{where}: index '{text}' is out of range; expected 0 to {n - 1}, a row of meta.csv "
            "counted from 0"
        )
    return int(text)


@vipbench.hookimpl
def register_datasets(register: RegisterDataset) -> None:
    """Register `derm7pt`."""
    register(
        "derm7pt",
        Derm7ptDataset,
        help="derm7pt[:5-way], dermoscopy (after registration)",
        known=["derm7pt", "derm7pt:5-way"],
    )
