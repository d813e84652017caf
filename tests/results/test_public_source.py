from __future__ import annotations

from pathlib import Path

import pytest

from vipbench.results.sharing.privacy import public_source


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("synthderm", "synthderm"),
        ("derm7pt:5-way", "derm7pt:5-way"),
        ("medmnist:dermamnist", "medmnist:dermamnist"),
        ("npz:/home/somebody/toy.npz", "npz:PATH"),
        ("npz:toy.npz", "npz:PATH"),
        ("folder:C:\\clinic\\images", "folder:PATH"),
        ("folder:patients", "folder:PATH"),
        ("folder:elsewhere", "folder:elsewhere"),
    ],
)
def test_records_tell_no_path(source: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "patients").mkdir()
    assert public_source(source, tmp_path) == told
