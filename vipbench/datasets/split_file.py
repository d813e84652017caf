"""`split:FILE`: a split file of the CoOp family, with the images beside it or in a folder there.

A card beside the file (`STEM.yaml`) may give display names, templates, symptoms, licence, and
`images: DIR`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import vipbench
from vipbench.api.dataset import DataError, Dataset, Split
from vipbench.datasets.reading.card import Card, find_card
from vipbench.datasets.reading.image_folders import ImageFolders
from vipbench.datasets.reading.paths import find_source
from vipbench.datasets.reading.rows import locate, make_splits, with_groups
from vipbench.datasets.reading.split_json import find_image_folder, read_split_json
from vipbench.errors import UsageError
from vipbench.hookspecs import RegisterDataset


class SplitFileDataset(Dataset):
    """The split file `argument`; relative paths are looked for in the working directory, then in
    the data folder. class_names are known once it is loaded."""

    class_names: tuple[str, ...] = ()
    takes_images = True
    revision = 2

    def __init__(self, argument: str | None) -> None:
        if not argument:
            raise UsageError("dataset 'split' needs a split file: split:FILE.json")
        self.argument = argument
        self.name = Path(argument).stem.removeprefix("split_") or "split"

    def locate(self, root: Path | None) -> Path:
        """See Dataset."""
        return find_source(self.argument, root, "split file")

    def load(self, root: Path | None) -> Mapping[str, Split]:
        """Read the file and find its images. Raises DataError naming file and row."""
        path = self.locate(root)
        if path.is_dir():
            raise DataError(f"'{path}' is a folder; expected a split file (folder:PATH reads one)")
        card = find_card(path.with_suffix(".yaml"), path.with_suffix(".yml")) or Card(path)
        names, rows = read_split_json(path)
        self.class_names = card.display_names(names)
        folders = card.image_folders(self.image_root)
        folders = [*folders, path.parent] if folders else [find_image_folder(path, rows)]
        rows, files = locate(ImageFolders(folders, path.with_suffix(".yaml").name), rows)
        if card.group:
            groups, lacking = card.file_groups(files)
            self.notes = tuple(lacking)
            rows = with_groups(rows, groups)
        card.apply(self)
        return make_splits(rows, files)


@vipbench.hookimpl
def register_datasets(register: RegisterDataset) -> None:
    """Register `split:FILE`."""
    register("split", SplitFileDataset, help="split:FILE, a split file of the CoOp family (JSON)")
