"""`medmnist:FLAG[_64|_128|_224]`: a published file of MedMNIST v2, checked by its MD5.

The file is looked for in the data folder, in its folder `medmnist/`, and where the package
`medmnist` puts it. `npz:PATH` reads any other file of that form.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import vipbench
from vipbench.api.dataset import DataError, Split
from vipbench.datasets.npz import NpzDataset
from vipbench.datasets.reading import medmnist_files as _medmnist
from vipbench.datasets.reading.paths import data_folder, listed
from vipbench.errors import UsageError, unknown
from vipbench.fetching import WebFile
from vipbench.hookspecs import RegisterDataset

URL_VARIABLE = "VIPBENCH_MEDMNIST_URL"


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
            name, mark, side = argument.partition("_")
            whole = f"{name}mnist{mark}{side}"  # `chest_64`, short for `chestmnist_64`
            if (short := _medmnist.recognise(whole)[0]) in _medmnist.MEDMNIST:
                raise UsageError(
                    f"unknown MedMNIST set '{argument}'; did you mean '{whole}'? Known: {flags}."
                )
            if short is not None:
                raise UsageError(f"MedMNIST's {short} {_medmnist.REFUSED[short]}")
            raise unknown("MedMNIST set", argument, _medmnist.MEDMNIST, "Sizes: _64, _128, _224.")
        super().__init__(f"{flag}.npz" if size in (None, 28) else f"{flag}_{size}.npz")
        self.size = size or 28

    def load(self, root: Path | None) -> Mapping[str, Split]:
        """Find the file, check it, and read it. Raises DataError."""
        path = self.locate(root)
        [file] = self.files(root)
        if problem := file.damage():
            raise DataError(
                f"'{path}' is not the published file: {problem}. `vipbench fetch {self.source}` "
                f"downloads it again from {_medmnist.HOME}; or read it as it is: npz:{path}"
            )
        return self.read(path)

    @property
    def source(self) -> str:
        """How a run asks for it."""
        return f"medmnist:{Path(self.argument).stem}"

    def files(self, root: Path | None) -> tuple[WebFile]:
        """The published file, in `medmnist/` of the data folder; `VIPBENCH_MEDMNIST_URL` names
        another server that has the same files."""
        assert self.fact is not None
        folder = data_folder(root)
        base = os.environ.get(URL_VARIABLE, f"{_medmnist.HOME}/files").rstrip("/")
        md5 = self.fact.md5[_medmnist.SIZES.index(self.size)]
        file = WebFile(
            f"{base}/{self.argument}",
            folder / "medmnist" / self.argument,
            f"md5:{md5}",
            self.fact.licence,
            (folder / self.argument, Path.home() / ".medmnist" / self.argument),
            f"It can also be downloaded by hand from {_medmnist.HOME}, into {folder / 'medmnist'}",
        )
        return (file,)

    def locate(self, root: Path | None) -> Path:
        """See Dataset."""
        assert self.fact is not None
        [file] = self.files(root)
        path = file.find()
        if path is None:
            raise DataError(
                f"'{self.argument}' is missing; looked for {listed(file.places())}. "
                f"`vipbench fetch {self.source}` downloads it, or get it from {_medmnist.HOME} "
                f"({self.fact.licence}); --data-root names the folder of your data"
            )
        return path


@vipbench.hookimpl
def register_datasets(register: RegisterDataset) -> None:
    """Register `medmnist:FLAG`."""
    sizes = ("", *(f"_{size}" for size in _medmnist.SIZES[1:]))
    register(
        "medmnist",
        MedMnistDataset,
        help="medmnist:FLAG[_64|_128|_224], a published MedMNIST file",
        known=[f"medmnist:{flag}{size}" for flag in _medmnist.MEDMNIST for size in sizes],
    )
