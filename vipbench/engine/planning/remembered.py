"""What was found out about image files, remembered in the cache for later plans.

A plan reads every image once; the parts of a run on a cluster would each read all of them. A file
counts as unchanged by its path, inode, size, and the times of change of its content (mtime_ns) and
of its entry (ctime_ns), which no program can set. This spares planning alone: whoever encodes an
image still compares the bytes that it decodes with the digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from vipbench import alive
from vipbench.engine import kept
from vipbench.images import ImageFacts, ImageLike, examine_image
from vipbench.images.depth import StoredAs

# The files of so many datasets are remembered.
MOST = 64
# A file that was changed so shortly before may change again within the clock's resolution.
RECENT_NS = 2 * 10**9


class Remembered:
    """The facts of the image files among `images`; see `examine_image`."""

    def __init__(self, images: Sequence[Sequence[ImageLike]]) -> None:
        firsts = [split[0] for split in images if len(split)]
        self._name = _name([os.fspath(p) for p in firsts if isinstance(p, str | os.PathLike)])
        self._state = kept.state_of_code() if self._name else ""
        kept_before = kept.load(self._name, self._state) if self._name else None
        self._known: dict[str, Any] = kept_before if isinstance(kept_before, dict) else {}
        self._new: dict[str, Any] = {}

    def examine(self, image: ImageLike, name: str, values: bool, known: bool) -> ImageFacts:
        """See `examine_image`."""
        if not self._name or not isinstance(image, str | os.PathLike):
            return examine_image(image, name, values, known)
        path = os.path.abspath(os.fspath(image))  # noqa: PTH100 - resolves no link
        state = _state(path)
        entry = self._known.get(path)
        # What was asked for decides what the pixels of a dataset mean.
        if state is not None and isinstance(entry, list) and entry[:3] == [state, values, known]:
            with suppress(KeyError, TypeError, IndexError):  # altered
                facts = _facts(entry[3])
                alive.sign()
                # What rests on this plan rests on the file, though it is not opened.
                sys.audit("open", path, None, 0)
                return facts
        found = examine_image(image, name, values, known)
        if state is not None and max(state[2:]) < time.time_ns() - RECENT_NS:
            own = json.loads(json.dumps(asdict(found), default=float))
            if _facts(own) == found:
                self._new[path] = [state, values, known, own]
        return found

    def keep(self) -> None:
        """Write down what is new."""
        if self._new:
            kept.keep(self._name, self._state, self._known | self._new, MOST)


def _name(paths: Sequence[str]) -> str:
    """By the first image of each split of a dataset; "" where they are no files."""
    text = "\n".join(map(os.path.abspath, paths))
    return (
        f"{kept.DIGESTS}/{hashlib.sha256(os.fsencode(text)).hexdigest()[:32]}.json" if paths else ""
    )


def _state(path: str) -> list[int] | None:
    try:
        at = os.stat(path)  # noqa: PTH116 - speed
    except OSError:
        return None
    return [at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns]


def _facts(entry: dict[str, Any]) -> ImageFacts:
    stored = entry["stored"]
    if not isinstance(entry["digest"], str):
        raise TypeError
    return ImageFacts(**{**entry, "stored": None if stored is None else StoredAs(**stored)})
