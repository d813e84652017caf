"""`synthderm`: drawn skin lesions with known attributes, so that a run can be tried anywhere.

Each of six invented classes is defined by a combination of attributes, none of which it has to
itself; every image follows each of them only with the chance `FIDELITY`, so that even somebody
who sees all attributes errs now and then. Image `index` of a split is a pure function of
(revision, split, index); nothing is stored or downloaded.

The names are invented and mean nothing; whoever knows only them can but guess. The images are
cartoons and say nothing about patients.

Source: own work.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from vipbench import hookimpl
from vipbench.api.dataset import SPLITS, Dataset, Split
from vipbench.datasets import _render
from vipbench.datasets._render import Attributes, Stream
from vipbench.errors import UsageError
from vipbench.hookspecs import RegisterDataset
from vipbench.images import digest_image
from vipbench.symptoms import shipped_descriptions, shipped_symptoms

REVISION = 1
"""Raise it whenever a pixel or a label changes: it enters every random stream."""

DIGESTS = Path(__file__).with_suffix(".json")
FIDELITY = 0.72
"""Chance that an image follows one given attribute of its class; else it is drawn blindly."""

BACKGROUND = 0.15
"""Chance of a structure that does not belong to the class."""

PER_CLASS: Mapping[str, int] = {"train": 60, "val": 20, "test": 50}
"""Images of each class in each split."""

# Shared on purpose: every single value is typical of two classes or is weakened by FIDELITY.
CLASSES: Mapping[str, Mapping[str, str | tuple[str, ...]]] = {
    "velmorid nevoma": {
        "shape": "asymmetric",
        "border": "ragged",
        "palette": "several",
        "structures": ("veil",),
    },
    "ombrine lentule": {
        "shape": "asymmetric",
        "border": "blurred",
        "colour": "brown",
        "structures": ("network",),
    },
    "corvane keratule": {
        "shape": "round",
        "border": "smooth",
        "colour": "black",
        "structures": ("dots", "streaks"),
    },
    "lutheric angiole": {
        "shape": "round",
        "border": "smooth",
        "colour": "red",
        "palette": "several",
    },
    "sarnese basalome": {
        "shape": "oval",
        "border": "blurred",
        "colour": "pink",
        "structures": ("ulcer", "vessels"),
    },
    "tessaric verrucid": {
        "shape": "oval",
        "border": "ragged",
        "colour": "yellow",
        "structures": ("scale", "cysts"),
    },
}

CLASS_NAMES = tuple(CLASSES)
TEMPLATES = ("a photo of a {}.", "a close-up of a {}.", "skin with a {}.")


def labels(split: str) -> npt.NDArray[np.int64]:
    """(N,) labels of a split, classes taking turns: 0, 1, …, 5, 0, 1, …"""
    count = _per_class(split) * len(CLASSES)
    return np.arange(count, dtype=np.int64) % len(CLASSES)


def attributes(split: str, index: int) -> dict[str, Any]:
    """What is drawn on image `index` of `split`: see `_render.Attributes` for keys and values."""
    return asdict(_draw(split, index)[0])


def render(split: str, index: int) -> Image.Image:
    """Image `index` of `split`, 64x64 RGB; a pure function of (REVISION, split, index)."""
    drawn, rng = _draw(split, index)
    return Image.fromarray(_render.paint(drawn, rng))


def _per_class(split: str) -> int:
    if split not in PER_CLASS:
        raise UsageError(
            f"synthderm has no split '{split}'; expected one of {', '.join(PER_CLASS)}"
        )
    return PER_CLASS[split]


def _draw(split: str, index: int) -> tuple[Attributes, Stream]:
    """Attributes of an image, and its stream standing where painting begins."""
    count = _per_class(split) * len(CLASSES)
    if not 0 <= index < count:
        raise UsageError(
            f"synthderm: image {index} of split '{split}' was asked for; "
            f"expected an index from 0 to {count - 1}"
        )
    rng = Stream([REVISION, SPLITS.index(split), index])
    typical = CLASSES[CLASS_NAMES[index % len(CLASSES)]]

    def pick(name: str, options: Sequence[str]) -> str:
        # Both numbers are drawn always, so that one class's definition never moves the others.
        follows, blind = rng.chance(FIDELITY), rng.choice(options)
        value = typical.get(name)
        return value if follows and isinstance(value, str) else blind

    own = typical.get("structures", ())
    drawn = Attributes(
        shape=pick("shape", _render.SHAPES),
        border=pick("border", _render.BORDERS),
        colour=pick("colour", _render.COLOURS),
        palette=pick("palette", _render.PALETTES),
        size=pick("size", _render.SIZES),
        structures=tuple(
            s for s in _render.STRUCTURES if rng.chance(FIDELITY if s in own else BACKGROUND)
        ),
    )
    return drawn, rng


class _Images(Sequence[Image.Image]):
    """The images of a split, painted when asked for."""

    def __init__(self, split: str) -> None:
        self._split = split
        self._count = _per_class(split) * len(CLASSES)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image.Image]: ...
    def __getitem__(self, index: int | slice) -> Image.Image | list[Image.Image]:
        """Image `index` (negative ones count from the end), or a list of them for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        place = index + self._count if index < 0 else index
        if not 0 <= place < self._count:
            raise IndexError(f"synthderm: image {index} of split '{self._split}' of {self._count}")
        return _remembered(self._split, place).copy()


@lru_cache(maxsize=1024)
def _remembered(split: str, index: int) -> Image.Image:
    # All images together are 9 MB; training views would otherwise paint each of them many times.
    return render(split, index)


class SynthDerm(Dataset):
    """Six invented kinds of drawn skin lesions: 360 / 120 / 300 images in train / val / test."""

    name = "synthderm"
    class_names = CLASS_NAMES
    templates = TEMPLATES
    licence = "Apache-2.0 (drawn by vipbench itself)"
    sharing = "allowed"
    citation = "vipbench: the procedural dataset synthderm"
    caption = (
        "synthderm is synthetic and was built so that symptoms help; "
        "its numbers say nothing about patients."
    )
    revision: ClassVar[int] = REVISION

    def __init__(self) -> None:
        self.symptoms = shipped_symptoms(self.name, self.class_names)
        self.descriptions = shipped_descriptions(self.name, self.class_names)

    def load(self, root: Path | None) -> Mapping[str, Split]:
        """The three splits; `root` is not used, for the images are drawn on demand."""
        known = _known_digests()
        return {
            split: Split(
                images=_Images(split),
                labels=labels(split),
                ids=tuple(f"{split}-{i:03d}" for i in range(PER_CLASS[split] * len(CLASSES))),
                planned=known.get(split),
            )
            for split in SPLITS
        }


def _code_digest() -> str:
    """SHA-256 of the code that draws."""
    files = (Path(__file__), Path(_render.__file__))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _known_digests() -> dict[str, tuple[str, ...]]:
    """split -> the digests of its images, from the file that comes with this code; empty where the
    code has changed since the file was written. So no image is drawn only to be digested."""
    try:
        kept = json.loads(DIGESTS.read_text())
        if kept["code"] != _code_digest():
            return {}
        return {split: tuple(kept[split]) for split in SPLITS}
    except (OSError, ValueError, KeyError):
        return {}


def write_digests() -> None:
    """Write that file anew, after a change of the code:
    `python -c "from vipbench.datasets import synthderm; synthderm.write_digests()"`."""
    drawn = {split: [digest_image(image) for image in _Images(split)] for split in SPLITS}
    DIGESTS.write_text(json.dumps({"code": _code_digest(), **drawn}, indent=0) + "\n")


def _factory(argument: str | None) -> Dataset:
    if argument is not None:
        raise UsageError(f"dataset 'synthderm:{argument}': synthderm takes no argument; drop it")
    return SynthDerm()


@hookimpl
def register_datasets(register: RegisterDataset) -> None:
    """Register `synthderm`."""
    register("synthderm", _factory, help="drawn skin lesions with known attributes, 6 classes")
