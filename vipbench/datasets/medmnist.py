"""`medmnist:FLAG[_64|_128|_224]`: a published file of MedMNIST v2, checked by its MD5.

The file is looked for in the data folder, in its folder `medmnist/`, and where the package
`medmnist` puts it. `npz:PATH` reads any other file of that form.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import vipbench
from vipbench.api.dataset import DataError, Split
from vipbench.datasets import _medmnist
from vipbench.datasets._files import data_folder, listed
from vipbench.datasets.npz import NpzDataset
from vipbench.errors import UsageError, unknown
from vipbench.hookspecs import RegisterDataset


class MedMnistDataset(NpzDataset):
    """The set that `argument` names, for instance `pneumoniamnist_64`; without a size, 28."""

    def __init__(self, argument: str | None) -> None:
        flags = ", ".join(_medmnist.MEDMNIST)
        if not argument:
            raise UsageError(
                f"dataset 'medmnist' needs a set: medmnist:FLAG[_64|_128|_224]; {flags}"
            )
        flag, size = _medmnist.recognise(argument)
        if flag is None:
            raise unknown("MedMNIST set", argument, _medmnist.MEDMNIST, "Sizes: _64, _128, _224.")
        super().__init__(f"{flag}.npz" if size in (None, 28) else f"{flag}_{size}.npz")
        self.size = size or 28

    def load(self, root: Path | None) -> Mapping[str, Split]:
        """Find the file, check it, and read it. Raises DataError."""
        assert self.fact is not None  # set in __init__ for every flag that is not refused
        folder = data_folder(root)
        places = [folder, folder / "medmnist", Path.home() / ".medmnist"]
        path = next((p / self.argument for p in places if (p / self.argument).is_file()), None)
        if path is None:
            raise DataError(
                f"'{self.argument}' is not there; looked in {listed(map(str, places))}. Download "
                f"it from {_medmnist.HOME} ({self.fact.licence}); --data-root names the folder of "
                "your data"
            )
        with path.open("rb") as file:
            found = hashlib.file_digest(file, _md5).hexdigest()
        published = self.fact.md5[_medmnist.SIZES.index(self.size)]
        if found != published:
            raise DataError(
                f"'{path}' is not the published file: its MD5 is {found}, not {published}. "
                f"Download it again from {_medmnist.HOME}, or read it as it is: npz:{path}"
            )
        return self.read(path)


def _md5() -> hashlib._Hash:
    return hashlib.md5(usedforsecurity=False)


@vipbench.hookimpl
def register_datasets(register: RegisterDataset) -> None:
    """Register `medmnist:FLAG`."""
    register(
        "medmnist", MedMnistDataset, help="medmnist:FLAG[_64|_128|_224], a published MedMNIST file"
    )
