"""What a dataset plugin implements: named classes, texts about them, and three splits of images.

This module does not import torch.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from vipbench.fetching import Needed
from vipbench.images import ImageLike, PixelRange, digest_image, open_image

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """One split of a dataset.

    images: length N; each item is a path, a PIL image or a uint8 array (H,W) or (H,W,3). A lazy
        sequence works: items are read one at a time, and only when needed. If all items come from
        one file, the sequence may have its path as the attribute `file`, which errors then name.
    labels: (N,) integers in [0, C).
    ids: N stable names of the images, unique within the split (a relative path, an index).
    groups: N patient or lesion ids if the data has them, else None.
    planned: N digests of the images (`digest_image`) with which a run was planned; opening an
        image whose digest differs is an error. The run sets them. A loader that generates 8-bit
        RGB images may set them, so that planning does not generate the images.
    pixels: the meaning of values of more than 8 bits; the run determines it for the whole dataset.
    """

    images: Sequence[ImageLike]
    labels: npt.NDArray[np.int64]
    ids: tuple[str, ...]
    groups: tuple[str, ...] | None = None
    planned: tuple[str, ...] | None = None
    pixels: PixelRange | None = None

    def __post_init__(self) -> None:
        n = len(self.images)
        if not (len(self.labels) == len(self.ids) == n):
            raise ValueError(
                f"a split has {n} images, {len(self.labels)} labels and {len(self.ids)} ids; "
                "the three must be equally many"
            )
        if self.groups is not None and len(self.groups) != n:
            raise ValueError(f"a split has {n} images and {len(self.groups)} groups")

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of each image's content (`digest_image`), computed once. Raises ImageError."""
        if self.planned is not None:
            return self.planned
        return tuple(digest_image(self.images[i], name=name) for i, name in enumerate(self.ids))

    def open(self, index: int) -> Image.Image:
        """The image `index` as RGB. Raises ImageError naming the file when it cannot be read, and
        ImageChangedError when it is not the one that the run was planned with."""
        return self.open_given(index, self.images[index])

    def open_given(self, index: int, image: ImageLike) -> Image.Image:
        """Like `open`, for `image`, the item `index` of `images`."""
        name, file = self.ids[index], getattr(self.images, "file", None)
        if file is not None:
            name = f"{name}' of '{file}"  # messages put it in quotes
        return open_image(image, name, self.pixels, self.expected(index))

    def expected(self, index: int) -> str | None:
        """The digest with which the run was planned."""
        return None if self.planned is None else self.planned[index]

    def counts(self, n_classes: int) -> list[int]:
        """Images of each class, length C."""
        return [int(n) for n in np.bincount(self.labels, minlength=n_classes)]


class Dataset(ABC):
    """A classification dataset. Attributes are set on the class, in `__init__` or, if only the data
    determine them, in `load`.

    name: what tables show; never a path.
    class_names: C names as a person would write them, in the order of the labels.
    templates: prompt templates, each with one `{}`; single-template methods use the first.
    symptoms: class name -> visual symptoms, texts without the class name; None if the dataset
        ships none (users can give a file).
    descriptions: class name -> texts with the class name, for methods trained against LLM-written
        descriptions; None if the dataset ships none.
    notes: how `load` interpreted unusual input (folders left out, spellings merged), one sentence
        each: printed before a run and kept in its records; exports leave them out, so they may
        name files and groups.
    takes_images: whether the data's image files may be in another folder; `image_root` is then the
        folder given by `--images`, or None.
    pixels: which values of images of more than 8 bits become black and white, if the user states
        it; None: the images decide.
    fold: the fold to test on, if the user chose one of data in folds.
    revision: raise it when the loader's output changes.
    """

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...] = ("a photo of a {}.",)
    symptoms: Mapping[str, Sequence[str]] | None = None
    descriptions: Mapping[str, Sequence[str]] | None = None
    licence: str = "unknown"
    sharing: Literal["local", "allowed"] = "local"
    citation: str = ""
    caption: str = ""  # one sentence that tables of this dataset carry (for instance: synthetic)
    notes: tuple[str, ...] = ()
    takes_images: ClassVar[bool] = False
    image_root: Path | None = None
    pixels: PixelRange | None = None
    fold: str | None = None
    revision: ClassVar[int] = 1

    @abstractmethod
    def load(self, root: Path | None) -> Mapping[str, Split]:
        """Read the splits: a mapping with the keys "train", "val" and "test"; of data in folds with
        "fold-1", "fold-2", …

        root: the user's data folder (`--data-root`), or None.
        Raises DataError naming file, row and what to do.
        """

    def files(self, root: Path | None) -> Iterable[Needed]:
        """The files that `vipbench fetch` can download; none for data that are bundled, the user's
        own, or behind a login."""
        return ()

    def locate(self, root: Path | None) -> Path | None:
        """The location of the data, found without reading them; None if they need no file.

        Raises DataError with what was searched for, where, and how to get it.
        """
        found: Path | None = None
        for needed in self.files(root):
            path = needed.find()
            if path is None:
                raise DataError(
                    f"{needed.what} is missing; looked for {', '.join(needed.places())}. "
                    "`vipbench fetch` downloads it"
                )
            found = found or path
        return found

    def fingerprint(self, splits: Mapping[str, Split]) -> str:
        """A digest of content, labels, splits and groups; never of paths."""
        return fingerprint_splits(self.class_names, splits, self.revision, self.pixels)


def fingerprint_splits(
    class_names: Sequence[str],
    splits: Mapping[str, Split],
    revision: int = 1,
    pixels: PixelRange | None = None,
) -> str:
    """SHA-256 over class names, every image's content, label and group, split by split, and over
    the user's statement on pixels."""
    digest = hashlib.sha256()

    def put(*parts: Any) -> None:
        for part in parts:
            data = str(part).encode()
            digest.update(len(data).to_bytes(8, "little") + data)

    put("vipbench-dataset", revision, *class_names)
    if pixels is not None:
        put("pixels", pixels.source, float(pixels.low), float(pixels.high))
    for name in SPLITS if "train" in splits else splits:
        split = splits[name]
        put(name, len(split))
        for i, content in enumerate(split.digests):
            group = split.groups[i] if split.groups is not None else ""
            put(content, int(split.labels[i]), group)
    return digest.hexdigest()


class DataError(ValueError):
    """A dataset, a symptom file or a part of them is missing or wrong; the message says which."""
