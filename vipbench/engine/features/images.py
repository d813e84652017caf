"""Opens, crops and preprocesses a dataset's images for one backbone, in threads or processes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from vipbench.api import ImageBackbone, ImageLike, Split, Views
from vipbench.engine.features import decode_pool as decoders
from vipbench.engine.features.decode_pool import Decoders, NotPortableError
from vipbench.engine.features.decode_process import Job
from vipbench.engine.machine import sent

# Decoded images of a training that sees them again in every epoch, kept up to so many bytes.
KEEP_BYTES = 512 << 20
MOST_THREADS = 8
# Batches that are decoded ahead of the one that is encoded. Were it one alone, processes would run
# out of work at the end of each.
AHEAD, AHEAD_OF_DECODERS = 1, 2
# A note on a backbone is not repeated for each of its datasets.
_noted: set[str] = set()


# Training views and the seed that they are drawn by; None: the evaluation view.
Drawn: TypeAlias = tuple[Views, int] | None


@dataclass(frozen=True)
class Wish:
    """One view of the image at `index` of a split. view: its number, 0 for the evaluation view."""

    split: str
    views: Drawn
    index: int
    view: int


@dataclass
class ImageReader:
    """Preprocessed images of one dataset; indices are positions in a split.

    note: tells the user. Raises UsageError where `VIPBENCH_DECODERS` is no number of processes.
    """

    backbone: ImageBackbone
    splits: Mapping[str, Split]
    note: Callable[[str], None] = lambda text: None
    _kept: dict[tuple[str, int], Image.Image] = field(default_factory=dict)
    _kept_bytes: int = 0
    _threads: ThreadPoolExecutor | None = None
    _decoders: Decoders | None = None
    _refused: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        decoders.asked()

    @contextmanager
    def decoding(self, count: int) -> Iterator[int]:
        """For as long as `count` views are encoded: processes decode where they were asked for.
        Gives how many batches to begin ahead of the one that is encoded."""
        wanted = decoders.wanted(count)
        sent = self._portable() if wanted else None
        if sent is None:
            yield AHEAD
            return
        found = Decoders(sent, wanted)
        try:
            with found as self._decoders:
                yield AHEAD_OF_DECODERS
        finally:
            self._decoders = None
            for problem in found.problems:
                self.note(problem)
            if found.refused:
                self._refused = found.refused
                if not found.problems:
                    self._portable()  # tells why

    def begin(self, wishes: Sequence[Wish]) -> Callable[[], Tensor]:
        """Begin to decode `wishes` beside what else is done. The result waits for the images
        (N,3,H,H) and gives them on the backbone's device. Wishes for one image that follow one
        another are cut from one decoding."""
        made = []
        for (split, index), some in groupby(wishes, key=lambda wish: (wish.split, wish.index)):
            made.append(self._start(split, index, list(some)))

        def result() -> Tensor:
            images = torch.stack([view for part in made for view in part.result()])
            return sent(images, self.backbone.device)

        return result

    def _start(self, split: str, index: int, wishes: Sequence[Wish]) -> Future[list[Tensor]]:
        source = self.splits[split]
        drawn = any(wish.views is not None for wish in wishes)
        kept = self._kept.get((split, index)) if drawn else None
        # A dataset is asked for one item at a time; only what follows runs beside it.
        given = source.images[index] if kept is None else None
        cuts = []
        for views, some in groupby(wishes, key=lambda wish: wish.views):
            keys: list[tuple[object, ...]] = [() for _ in some]
            if views is not None:
                digest = source.digests[index]
                keys = [(digest, views[1], wish.view) for wish in wishes if wish.views == views]
            cuts.append((None if views is None else views[0], tuple(keys)))
        sent = None if self._decoders is None else _sendable(given)
        job = Job(
            "" if sent is None else sent,
            self.backbone.image_size,
            tuple(cuts),
            source.pixels,
            source.expected(index),
        )
        # An image that a decoder opens is not kept here.
        alone = partial(self._run, split, index, given, kept, job, drawn and sent is None)
        if self._decoders is not None and sent is not None:
            return self._decoders.threads.submit(self._decoders.run, job, alone)
        if self._threads is None:
            most = min(MOST_THREADS, os.cpu_count() or 1)
            # Left to itself, each thread would start a team of its own for torch's operations, and
            # with more of those than cores the main thread's steps wait for one another asleep.
            self._threads = ThreadPoolExecutor(
                most, "images", initializer=torch.set_num_threads, initargs=(1,)
            )
        return self._threads.submit(alone)

    def _run(
        self,
        split: str,
        index: int,
        given: ImageLike | None,
        kept: Image.Image | None,
        job: Job,
        keep: bool,
    ) -> list[Tensor]:
        """The preprocessed views of one image, made in this process."""
        image = kept
        if image is None:
            assert given is not None
            image = self.splits[split].open_given(index, given)
        if keep:
            self._keep((split, index), image)
        return job.pixels(image, self.backbone.preprocess)

    def _portable(self) -> bytes | None:
        """The preprocessing for another process; None where it cannot be sent, which is
        noted once."""
        try:
            if self._refused:
                raise NotPortableError(self._refused)
            return decoders.portable(self.backbone)
        except NotPortableError as error:
            note = (
                f"backbone '{self.backbone.name}': threads decode its images, though "
                f"{decoders.VARIABLE} asks for processes: {error}"
            )
            if note not in _noted:
                _noted.add(note)
                self.note(note)
            return None

    def _keep(self, key: tuple[str, int], image: Image.Image) -> None:
        # First come, first kept: an epoch goes round all images, and one that replaced another
        # would be gone before its next turn.
        size = image.width * image.height * 3
        with self._lock:
            if key not in self._kept and self._kept_bytes + size <= KEEP_BYTES:
                self._kept[key] = image
                self._kept_bytes += size


def _sendable(given: ImageLike | None) -> str | npt.NDArray[np.uint8] | None:
    """What a decoder can open just as this process would; None for opened images, which may lose
    on the way what tells how they are to be turned, and for what is no image at all."""
    if isinstance(given, str | PathLike):
        return str(Path(given).absolute())
    if isinstance(given, np.ndarray) and given.dtype == np.uint8:
        return np.asarray(given)
    return None
