"""Answers that one command keeps for later ones, with the state of everything they depend on.

An answer is used while that state is the same, and computed again otherwise.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

import vipbench
from vipbench import files

CACHE_VARIABLE = "VIPBENCH_CACHE"
# What is remembered of image files.
DIGESTS = "digests"
# A folder of this machine that keeps copies of the features that are read from a shared disk.
LOCAL_VARIABLE = "VIPBENCH_CACHE_LOCAL"


def cache_folder() -> Path:
    """`VIPBENCH_CACHE`, or `vipbench/features` in the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else user_cache_path("vipbench") / "features"


def state_of_code() -> str:
    """A digest of Python's version and of the name, size, time of change and inode of each file of
    this package."""
    root = Path(vipbench.__file__).parent
    names = [sys.version, str(root)]
    for place, folders, found in os.walk(root):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        names += states(os.path.join(place, name) for name in sorted(found))  # noqa: PTH118 - speed
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def states(paths: Iterable[str]) -> Iterable[str]:
    """Name, size, time of change and inode of each file. Raises OSError."""
    for path in paths:
        at = os.stat(path)  # noqa: PTH116 - speed
        yield f"{path} {at.st_size} {at.st_mtime_ns} {at.st_ino}"


def clear() -> None:
    """Remove all answers."""
    for pattern in ("*.json", "plans/*.json", f"{DIGESTS}/*.json"):
        for file in cache_folder().glob(pattern):
            file.unlink(missing_ok=True)


def load(name: str, state: str) -> Any:
    """The answer `name` that was kept in this state, None where there is none."""
    try:
        kept = json.loads((cache_folder() / name).read_text(encoding="utf-8"))
        return kept["answer"] if kept["state"] == state else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(name: str, state: str, answer: Any, most: int | None = None) -> None:
    """Keep an answer, JSON values, where the folder can be written; of `most` in the folder the
    oldest is removed."""
    file = cache_folder() / name
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write(file, json.dumps({"state": state, "answer": answer}))
        if most is not None:
            others = sorted(file.parent.glob("*.json"), key=lambda other: other.stat().st_mtime)
            for old in others[:-most]:
                old.unlink()
