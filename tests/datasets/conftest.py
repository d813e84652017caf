from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakeImages = Callable[[Path, Iterable[str]], None]
MakeNpz = Callable[..., Path]


@pytest.fixture
def make_images() -> MakeImages:
    """Write tiny image files, each with content of its own, at these paths below a folder."""
    counter = iter(range(1, 1_000_000))

    def make(folder: Path, names: Iterable[str]) -> None:
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            n = next(counter)
            image = Image.new("RGB", (2, 2), (n % 256, n // 256 % 256, 7))
            image.save(path, "PNG")

    return make


@pytest.fixture
def make_npz(tmp_path: Path) -> MakeNpz:
    """Write `name`.npz with two classes in MedMNIST's form; keywords replace arrays (None: left
    out) or add some."""

    def make(name: str = "toy", compressed: bool = False, size: int = 8, **changes) -> Path:
        rng = np.random.default_rng(0)
        arrays = {}
        for split, n in (("train", 12), ("val", 4), ("test", 6)):
            arrays[f"{split}_images"] = rng.integers(0, 256, (n, size, size), dtype=np.uint8)
            arrays[f"{split}_labels"] = (np.arange(n) % 2).astype(np.uint8)[:, None]
        arrays = {k: v for k, v in {**arrays, **changes}.items() if v is not None}
        path = tmp_path / f"{name}.npz"
        (np.savez_compressed if compressed else np.savez)(path, **arrays)
        return path

    return make
