from __future__ import annotations

from importlib import import_module

import pytest

from vipbench.api import Dataset
from vipbench.errors import UsageError

# Module -> the word on the command line, and an argument that it takes.
DATASETS = {
    "npz": ("npz", "x.npz"),
    "folder": ("folder", "x"),
    "split_file": ("split", "x.json"),
    "csv_manifest": ("csv", "x.csv"),
    "medmnist": ("medmnist", "octmnist_64"),
    "derm7pt": ("derm7pt", None),
    "pneumonia": ("pneumonia", None),
}


@pytest.mark.parametrize("module", DATASETS)
def test_each_module_registers_its_dataset(module, tmp_path):
    registered = {}

    def register(name, factory, help="", known=()):
        registered[name] = factory, help

    import_module(f"vipbench.datasets.{module}").register_datasets(register)
    word, argument = DATASETS[module]
    assert list(registered) == [word]
    factory, text = registered[word]
    assert text.startswith(word)
    dataset = factory(argument)
    assert isinstance(dataset, Dataset)
    assert "/" not in dataset.name
    # Nothing is read before it is loaded, and what is missing is said then.
    with pytest.raises((UsageError, ValueError), match="looked"):
        dataset.load(tmp_path)
