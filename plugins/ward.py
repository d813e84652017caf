"""A dataset as a plugin: two classes from a text file."""

from pathlib import Path

import numpy as np

import vipbench
from vipbench.api import DataError, Dataset, Split


class Ward(Dataset):
    """Two classes from a text file: one `path label split patient` a line."""

    class_names = ("benign lesion", "malignant lesion")
    templates = ("a dermoscopic image of a {}.",)
    symptoms = {
        "benign lesion": ["even brown colour", "round, smooth outline"],
        "malignant lesion": ["several colours", "ragged outline"],
    }
    licence = "internal"

    def __init__(self, argument):
        self.name = "ward"
        self.file = argument or "ward.txt"

    def load(self, root):
        listing = Path(root or ".") / self.file
        if not listing.is_file():
            raise DataError(f"dataset 'ward' looked for {listing}; give its folder by --data-root")
        rows = [line.split() for line in listing.read_text().splitlines()]
        splits = {}
        for name in ("train", "val", "test"):
            mine = [row for row in rows if row[2] == name]
            splits[name] = Split(
                images=[listing.parent / path for path, *_ in mine],
                labels=np.array([int(label) for _, label, *_ in mine], dtype=np.int64),
                ids=tuple(path for path, *_ in mine),
                groups=tuple(patient for *_, patient in mine),
            )
        return splits


@vipbench.hookimpl
def register_datasets(register):
    register("ward", Ward, help="ward[:FILE], lesions of our ward")
