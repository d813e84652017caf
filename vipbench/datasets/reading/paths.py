"""Finding a dataset's files on a user's disk, in an order that is the same on every platform."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path, PurePosixPath

from vipbench.api.dataset import SPLITS, DataError
from vipbench.datasets.reading.image_files import is_litter
from vipbench.images import IMAGE_SUFFIXES


def find_source(argument: str, root: Path | None, what: str) -> Path:
    """The file or folder `argument`: absolute, or relative to the working directory, then to
    the data folder `root`. Raises DataError naming every place that was looked at."""
    if not is_text(argument):
        raise DataError(f"{what} {os.fsencode(argument)!r} has a name that is not UTF-8; rename it")
    path = Path(argument).expanduser()
    places = [path] if path.is_absolute() or root is None else [path, root / path]
    for place in places:
        if place.exists():
            return place
    looked = " and ".join(f"'{place.absolute()}'" for place in places)
    hint = "" if path.is_absolute() or root else "; --data-root names the folder of your data"
    raise DataError(f"{what} '{argument}' does not exist; looked for {looked}{hint}")


def natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sorts `2` before `10`, by code points otherwise, whatever the platform's locale."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(p), "") if i % 2 else (0, p) for i, p in enumerate(parts)], name


def stable_name(path: Path, root: Path) -> str:
    """`path` relative to `root`, with `/` and composed accents: the same on every platform."""
    return unicodedata.normalize("NFC", path.relative_to(root).as_posix())


def visible_folders(folder: Path, root: Path, trusted: Sequence[Path] = ()) -> list[Path]:
    """The folders in `folder`, in natural order, without hidden ones. root, trusted: see
    `images_below`."""
    found = [e for e in _entries(folder, root, trusted) if e.is_dir()]
    return sorted(found, key=lambda path: natural_key(stable_name(path, root)))


def images_below(
    folder: Path, root: Path, trusted: Sequence[Path] = ()
) -> tuple[list[Path], list[Path]]:
    """Image files in `folder` and its subfolders, in natural order, and the files that are none.
    Raises DataError for a link that leaves `root` and the folders
    `trusted`, and for a name that is not UTF-8."""
    images: list[Path] = []
    others: list[Path] = []
    seen: set[Path] = set()

    def walk(current: Path) -> None:
        real = resolved(current)
        if real in seen:  # a link back to a folder above
            return
        seen.add(real)
        for entry in _entries(current, root, trusted):
            if entry.is_dir():
                walk(entry)
            elif entry.suffix.lower() in IMAGE_SUFFIXES:
                images.append(entry)
            else:
                others.append(entry)

    walk(folder)
    return sorted(images, key=lambda path: natural_key(stable_name(path, root))), others


def inside(base: Path, relative: str, where: str) -> Path:
    """`base/relative`, for a path that a file gives. `where` names file and row.

    Raises DataError for an absolute path, for one that leaves `base`, also through a link, and for
    one that no file can have.
    """
    if "\0" in relative:
        raise DataError(
            f"{where}: path {relative!r} contains a NUL character, which file names cannot have"
        )
    pure = PurePosixPath(relative)
    if pure.is_absolute() or re.match(r"[A-Za-z]:|\\", relative) or ".." in pure.parts:
        raise DataError(
            f"{where}: path '{relative}' is absolute or leads out of the folder; expected a path "
            f"relative to '{base}'"
        )
    path = base / pure
    if not resolved(path).is_relative_to(base.resolve()):
        raise DataError(f"{where}: path '{relative}' is a link that leads out of '{base}'")
    return path


def resolved(path: Path) -> Path:
    """`path.resolve()`, which before Python 3.13 raises RuntimeError for links in a circle."""
    return Path(os.path.realpath(path))


def listed(names: Iterable[str], limit: int = 5) -> str:
    """`'a', 'b', 'c' and 4 more`: for messages."""
    every = list(names)
    shown = ", ".join(f"'{name}'" for name in every[:limit])
    return shown + (f" and {len(every) - limit} more" if len(every) > limit else "")


def loose_images(folder: Path, root: Path, trusted: Sequence[Path] = ()) -> list[Path]:
    """The image files that lie in `folder` itself."""
    return [e for e in _entries(folder, root, trusted) if e.suffix.lower() in IMAGE_SUFFIXES]


def _entries(folder: Path, root: Path, trusted: Sequence[Path]) -> Iterator[Path]:
    """What is in `folder`, without litter; links must stay inside `root` or `trusted`."""
    inner = [place.resolve() for place in (root, *trusted)]
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"folder '{folder}' cannot be read: {error.strerror}") from error
    for entry in entries:
        if is_litter(entry.name):
            continue
        if not is_text(entry.name):
            raise DataError(
                f"folder '{folder}' holds {os.fsencode(entry.name)!r}, a name that is not UTF-8; "
                "rename it (convmv does so for whole folders)"
            )
        if entry.is_symlink() and not any(map(resolved(entry).is_relative_to, inner)):
            raise DataError(
                f"'{entry}' is a link to '{resolved(entry)}', outside of '{root}'; copy the files "
                "into the folder, or name the folder of the link's target: --images DIR, or "
                "`images: DIR` in the card"
            )
        yield entry


def is_text(name: str) -> bool:
    """Whether a name on the disk is UTF-8: other bytes come as lone surrogates, which nothing can
    write down."""
    return name.isascii() or not any("\ud800" <= char <= "\udfff" for char in name)


def data_folder(root: Path | None) -> Path:
    """The data folder: `--data-root`, or `data` in the working directory."""
    return Path("data") if root is None else root


def counts_note(splits: Mapping[str, Sized], published: Sequence[int]) -> str:
    """A sentence for the caption where the splits are not as large as the published ones."""
    counts = [len(splits[name]) for name in SPLITS]
    if counts == list(published):
        return ""
    return (
        f"{'/'.join(map(str, counts))} images in train/val/test; the published set has "
        f"{'/'.join(map(str, published))}."
    )


def first_with(folders: Iterable[Path], marker: str) -> Path | None:
    """The first of `folders` in which `marker` exists."""
    return next((folder for folder in folders if (folder / marker).exists()), None)
