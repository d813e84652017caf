"""Where the data and weights of a run lie: paths that hold from any working directory.

A dataset `NAME:PATH` or a backbone `NAME@PATH` is given relative to the working directory, but a
suite that a run leaves behind is read from others, and from other places.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from vipbench.trust import REMOTE

# Datasets whose argument is a path, whatever it looks like.
ON_DISK = ("csv", "folder", "hf", "npz", "split")
# Backbones whose argument is a folder.
IN_FOLDERS = ("openclip:local-dir:", "transformers:")


def absolute(path: Path) -> Path:
    """`path` from the root, without `..`; links stay links."""
    return Path(os.path.abspath(path.expanduser()))  # noqa: PTH100 - resolve() follows links


def absolute_dataset(source: str, root: Path | None) -> str:
    """`NAME:PATH` with the absolute path of what it names in the working directory or in the data
    folder `root`; any other source as it is."""
    name, colon, argument = source.partition(":")
    path = Path(argument).expanduser()
    looks_like_one = os.sep in argument or path.suffix or argument.startswith("~")
    if not colon or not (name in ON_DISK or looks_like_one):
        return source
    for base in (Path(), *([] if root is None else [root])):
        if _is_there(base / path):
            return f"{name}:{absolute(base / path)}"
    return source


def _is_there(path: Path) -> bool:
    """Whether a dataset's file or folder exists, or the table of a fold, `study.csv@fold-2`."""
    return path.exists() or Path(re.sub(r"@fold-\d+$", "", str(path))).exists()


def absolute_backbone(source: str) -> str:
    """The same of local weights, `NAME@PATH`, and folders, `transformers:PATH`; each also as
    `LABEL=NAME...`."""
    label, equals, rest = source.partition("=")
    if equals and ":" not in label:
        return f"{label}={absolute_backbone(rest)}"
    given = source.removesuffix(REMOTE)
    head, at, argument = given.partition("@")
    if not at:
        head = next((prefix for prefix in IN_FOLDERS if given.startswith(prefix)), "")
        argument = given.removeprefix(head)
    if not head or not argument or not Path(argument).expanduser().exists():
        return source
    return f"{head}{at}{absolute(Path(argument))}{source[len(given) :]}"


def inside(folder: Path, path: Path) -> Path:
    """`path` relative to `folder` where it lies in it, so that the two can be moved together; else
    absolute."""
    path, folder = absolute(path), absolute(folder)
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def each_path(source: str, change: Callable[[Path], Path]) -> str:
    """`NAME:PATH` with `change` of the path."""
    name, colon, argument = source.partition(":")
    return f"{name}:{change(Path(argument))}" if colon else source


def to_folder(sources: Sequence[str], folder: Path, root: Path | None) -> dict[str, str]:
    """Each dataset's source as a suite in `folder` has it: see `absolute_dataset`, `inside`."""
    found = {}
    for source in sources:
        full = absolute_dataset(source, root)
        same = full == source and not Path(source.partition(":")[2]).is_absolute()
        found[source] = source if same else each_path(full, lambda path: inside(folder, path))
    return found


def from_folder(sources: Sequence[str], folder: Path) -> dict[str, str]:
    """Each dataset's source of a suite in `folder`: a relative path that is there starts there."""
    found = {}
    for source in sources:
        name, _, argument = source.partition(":")
        there = folder / argument
        known = name in ON_DISK or os.sep in argument
        if (
            argument
            and known
            and not Path(argument).expanduser().is_absolute()
            and _is_there(there)
        ):
            found[source] = f"{name}:{there}"
        else:
            found[source] = source
    return found
