"""Images of a dataset, opened, cut and preprocessed for one backbone, by several threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby

import torch
from PIL import Image
from torch import Tensor

from vipbench.api import ImageBackbone, ImageLike, Split, Views, open_image
from vipbench.engine.cache import Item
from vipbench.engine.views import training_view

# Decoded images of a training that sees them again in every epoch, kept up to so many bytes.
KEEP_BYTES = 512 << 20
MOST_THREADS = 8


@dataclass(frozen=True)
class _Work:
    """An image and the numbers of the views that are wanted of it: not opened yet, or kept."""

    index: int
    views: list[int]
    given: ImageLike | None
    kept: Image.Image | None


@dataclass
class Pictures:
    """Preprocessed images of one dataset; indices are positions in a split."""

    backbone: ImageBackbone
    splits: Mapping[str, Split]
    dataset_key: str
    _kept: dict[tuple[str, int], Image.Image] = field(default_factory=dict)
    _kept_bytes: int = 0
    _threads: ThreadPoolExecutor | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, split: str, items: Sequence[Item], views: tuple[Views, int] | None) -> Tensor:
        """Images (N,3,H,H) of `items` (index, view) on the backbone's device: the evaluation view
        where `views` is None, else training views of (views, seed)."""
        return self.begin(split, items, views)()

    def begin(
        self, split: str, items: Sequence[Item], views: tuple[Views, int] | None
    ) -> Callable[[], Tensor]:
        """Begin to decode what `get` gives, beside what else is done; the result waits for it."""
        works = []
        for index, some in groupby(items, key=lambda item: item[0]):
            # A dataset is asked for one item at a time; only what follows runs in threads.
            kept = self._kept.get((split, index)) if views is not None else None
            given = self.splits[split].images[index] if kept is None else None
            works.append(_Work(index, [v for _, v in some], given, kept))
        if self._threads is None:
            most = min(MOST_THREADS, os.cpu_count() or 1)
            # Left to itself, each thread would start a team of its own for torch's operations, and
            # with more of those than cores the main thread's steps wait for one another asleep.
            self._threads = ThreadPoolExecutor(
                most, "pictures", initializer=torch.set_num_threads, initargs=(1,)
            )
        made = [self._threads.submit(self._run, split, views, work) for work in works]

        def result() -> Tensor:
            images = torch.stack([view for part in made for view in part.result()])
            device = self.backbone.device
            if device.type == "cuda":
                return images.pin_memory().to(device, non_blocking=True)
            return images.to(device)

        return result

    def _run(self, split: str, views: tuple[Views, int] | None, work: _Work) -> list[Tensor]:
        """The preprocessed views of one image."""
        name = self.splits[split].ids[work.index]
        image = work.kept
        if image is None:
            assert work.given is not None
            image = open_image(work.given, name=name)
        if views is None:
            return [self.backbone.preprocess(image) for _ in work.views]
        self._keep((split, work.index), image)
        found = []
        for v in work.views:
            key = (self.dataset_key, split, name, views[1], v)
            view = training_view(image, self.backbone.image_size, views[0], key)
            found.append(self.backbone.preprocess(view))
        return found

    def _keep(self, key: tuple[str, int], image: Image.Image) -> None:
        # First come, first kept: an epoch goes round all images, and one that replaced another
        # would be gone before its next turn.
        size = image.width * image.height * 3
        with self._lock:
            if key not in self._kept and self._kept_bytes + size <= KEEP_BYTES:
                self._kept[key] = image
                self._kept_bytes += size
