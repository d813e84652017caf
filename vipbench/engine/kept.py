"""What one command leaves for the next: an answer, and the state of everything that it rests on.

It is used while that state is the same, and worked out anew otherwise. No torch here.
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


def load(name: str, state: str) -> Any:
    """The answer `name` that was kept in this state, None where there is none."""
    try:
        kept = json.loads((cache_folder() / name).read_text(encoding="utf-8"))
        return kept["answer"] if kept["state"] == state else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(name: str, state: str, answer: Any) -> None:
    """Keep an answer, JSON values, where the folder can be written."""
    with suppress(OSError):
        cache_folder().mkdir(parents=True, exist_ok=True)
        files.write(cache_folder() / name, json.dumps({"state": state, "answer": answer}))
