"""`pneumonia`: chest X-rays of children, with the patients as groups (Kermany et al. 2018).

Read as published, `chest_xray/{train,test}/{NORMAL,PNEUMONIA}` (a mirror adds a `val` of 16
images), with its folders called `normal lung` and `pneumonia`, or through a split file
`split_pneumonia.json`. Where there is no val, a tenth of train is taken, by whole patients.
Images are in the order of class and file name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import vipbench
from vipbench.api.dataset import SPLITS, DataError, Dataset, Split
from vipbench.datasets.reading.card import Card
from vipbench.datasets.reading.class_folders import read_class_folders
from vipbench.datasets.reading.image_folders import ImageFolders
from vipbench.datasets.reading.paths import counts_note, data_folder, listed
from vipbench.datasets.reading.rows import Row, locate, make_splits, ordered, take_val, with_groups
from vipbench.datasets.reading.split_json import find_image_folder, read_split_json
from vipbench.errors import UsageError
from vipbench.hookspecs import RegisterDataset
from vipbench.symptoms import shipped_symptoms

HOME = "https://data.mendeley.com/datasets/rscbjbr9sj/3"
SPLIT_FILE = "split_pneumonia.json"
FOLDERS = {"normal": 0, "normal lung": 0, "pneumonia": 1}


class PneumoniaDataset(Dataset):
    """Normal lungs against pneumonia."""

    name = "pneumonia"
    class_names = ("normal lung", "pneumonia")
    templates = ("a chest X-ray of {}.",)
    licence = "CC BY 4.0"
    sharing = "allowed"
    revision = 2
    citation = (
        "Kermany D, Zhang K, Goldbaum M. Labeled Optical Coherence Tomography (OCT) and Chest "
        "X-Ray Images for Classification. Mendeley Data, V3 (2018), doi 10.17632/rscbjbr9sj.3."
    )

    takes_images = True

    def __init__(self, argument: str | None) -> None:
        if argument is not None:
            raise UsageError(f"dataset 'pneumonia' takes no argument; got 'pneumonia:{argument}'")
        self.symptoms = shipped_symptoms(self.name, self.class_names)

    def load(self, root: Path | None) -> Mapping[str, Split]:
        """Read the layout that is there. Raises DataError naming file and row."""
        base, named = self.locate(root), Card(Path()).image_folders(self.image_root)
        if base.is_file():
            rows = self._split_file(base)
            base = base.parent if named else find_image_folder(base, rows)
        else:
            rows = read_class_folders(base, FOLDERS, named)
        rows, files = locate(ImageFolders([*named, base]), with_groups(rows, _patients(rows)))
        notes = []
        if not rows["val"]:
            rows, note = take_val(rows, self.class_names, files)
            notes = [note]
        splits = make_splits(ordered(rows), files)
        self.caption = " ".join([*notes, counts_note(splits, (4710, 522, 624))]).strip()
        return splits

    def locate(self, root: Path | None) -> Path:
        """The split file, else the folder with train/ and test/."""
        folder = data_folder(root)
        names = ("pneumonia", "Pneumonia", "chest_xray", "chest-xray-pneumonia", "")
        places = [folder / name for name in names]
        for place in places:
            if (place / SPLIT_FILE).is_file():
                return place / SPLIT_FILE
        for place in places:
            for base in (place / "image", place / "chest_xray", place):
                if (base / "train").is_dir() and (base / "test").is_dir():
                    return base
        raise DataError(
            f"pneumonia is missing; looked for {SPLIT_FILE} with its images, and for the folders "
            f"train/ and test/ (also in chest_xray/ and image/), in {listed(map(str, places))}. "
            f"Download it from {HOME} ({self.licence}); --data-root names the folder of your data"
        )

    def _split_file(self, path: Path) -> dict[str, list[Row]]:
        names, rows = read_split_json(path)
        if tuple(FOLDERS.get(name.lower().replace("_", " ")) for name in names) != (0, 1):
            raise DataError(
                f"split file '{path}' has the classes {listed(names)}; expected "
                f"{listed(self.class_names)}, in this order"
            )
        return rows


def patient_of(file: str, in_test: bool) -> str:
    """The patient that a file name tells; the name itself where it tells none.

    Version 3 calls files `VIRUS-<patient>-<n>`; a patient's images may be under BACTERIA, too.
    The mirror calls them `person<patient>_virus_<n>` and `IM-<patient>-<n>`, counting anew in
    the test set.
    """
    stem = PurePosixPath(file).stem
    if found := re.fullmatch(r"(?:NORMAL|BACTERIA|VIRUS)-(\d+)-\d+", stem):
        return found[1]
    if found := re.fullmatch(
        r"(person\d+)_(?:bacteria|virus)_\d+|((?:NORMAL2-)?IM-\d+)(?:-\d+)+", stem
    ):
        return ("test/" if in_test else "train/") + (found[1] or found[2])
    return stem


def _patients(rows: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    return {row.path: patient_of(row.path, n == "test") for n in SPLITS for row in rows[n]}


@vipbench.hookimpl
def register_datasets(register: RegisterDataset) -> None:
    """Register `pneumonia`."""
    register(
        "pneumonia",
        PneumoniaDataset,
        help="pneumonia, chest X-rays of children (Mendeley)",
        known=["pneumonia"],
    )
