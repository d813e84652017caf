"""Where the images that a file lists may lie, and how they are found there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vipbench.api.dataset import DataError
from vipbench.datasets.reading.paths import listed, resolved
from vipbench.images import IMAGE_SUFFIXES

_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")


@dataclass(frozen=True)
class Place:
    """A listed image. name: the path below the folder that it was found in, with `/`. file: the
    path to open."""

    name: str
    file: Path


class ImageFolders:
    """folders: a listed path is looked for in each, in this order, and read where it ends up below
    one of them, through links or not. card: the name of the card that may name such a folder, as
    --images may; "" where the data have none."""

    def __init__(self, folders: Sequence[Path], card: str = "") -> None:
        self.folders = tuple(dict.fromkeys(folders))
        self.way_out = "name the folder that contains the images: --images DIR"
        if card:
            self.way_out += f", or `images: DIR` in a card '{card}' beside it"
        self._roots = [folder.resolve() for folder in self.folders]
        self._parents: dict[Path, Path] = {}
        self._names: dict[Path, dict[str, list[str]]] = {}

    def find(self, text: str, where: str) -> Place | None:
        """The image that a file lists as `text`, with `/` or `\\` between its parts, with or
        without its ending; None where there is none. where: file and row, for messages.

        Raises DataError for a path outside of the folders, for one that no file can have, and
        where several files have the name.
        """
        if "\0" in text:
            raise DataError(
                f"{where}: path {text!r} contains a NUL character, which file names cannot have"
            )
        outside: Path | None = None
        for candidate in _spellings(text):
            for folder in self.folders:
                path = folder / candidate
                real = self._real(path)
                if not self._below(real):
                    outside = outside or real
                    continue
                if not real.is_file():
                    ended = self._with_ending(real, where, text)
                    if ended is None:
                        continue
                    path, candidate = path.with_name(ended), f"{candidate}{ended[len(path.name) :]}"
                    real = self._real(path)
                    if not self._below(real):
                        outside = outside or real
                        continue
                return Place(self._name(candidate, real), path)
        if outside is not None:
            raise DataError(
                f"{where}: path '{text}' {_leads(text, outside)}, outside of "
                f"{listed(map(str, self.folders))}, and only files in there are read; "
                f"{self.way_out}"
            )
        return None

    def why_missing(self, text: str) -> str:
        """What to know of a path that was not found."""
        if _WINDOWS.match(text):
            return (
                f"it names a Windows drive; write paths below a folder, and {self.way_out}, if it "
                f"is not '{self.folders[-1]}'"
            )
        for folder in self.folders:
            with suppress(OSError):
                for inner in sorted(folder.iterdir()):
                    if inner.is_dir() and (inner / text).exists():
                        return f"it is in '{inner}'; {self.way_out}"
        return f"{self.way_out}, or remove the rows"

    def _below(self, real: Path) -> bool:
        return any(real.is_relative_to(root) for root in self._roots)

    def _real(self, path: Path) -> Path:
        """`path.resolve()`, which asks the disk about each folder once."""
        if path.name in ("", ".."):
            return resolved(path)
        parent = self._parents.get(path.parent)
        if parent is None:
            parent = self._parents[path.parent] = resolved(path.parent)
        real = parent / path.name
        return resolved(real) if real.is_symlink() else real

    def _name(self, candidate: str, real: Path) -> str:
        pure = PurePosixPath(candidate)
        if not pure.is_absolute() and ".." not in pure.parts:
            return str(pure)
        root = next(root for root in self._roots if real.is_relative_to(root))
        return real.relative_to(root).as_posix()

    def _with_ending(self, path: Path, where: str, text: str) -> str | None:
        """The name of the one image beside `path` that is called so but for its ending."""
        if path.parent not in self._names:
            names: dict[str, list[str]] = {}
            with suppress(OSError):
                for entry in sorted(path.parent.iterdir()):
                    if entry.suffix.lower() in IMAGE_SUFFIXES:
                        names.setdefault(entry.stem, []).append(entry.name)
            self._names[path.parent] = names
        found = self._names[path.parent].get(path.name, [])
        if len(found) > 1:
            raise DataError(
                f"{where}: image '{text}' has no extension, and {listed(found)} exist; add the "
                f"extension"
            )
        return found[0] if found else None


def _spellings(text: str) -> Iterator[str]:
    """The path as it is written, and with `/` for `\\`, which separates on Windows."""
    yield text
    if "\\" in text:
        yield text.replace("\\", "/")


def _leads(text: str, real: Path) -> str:
    return "is absolute and lies" if PurePosixPath(text).is_absolute() else f"leads to '{real}'"
