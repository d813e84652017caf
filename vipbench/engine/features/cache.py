"""Features on disk, shared by methods, shots, seeds and later runs.

A shelf holds the features of one (backbone, dataset, split, kind of view, seed, precision,
library versions) in blocks: safetensors files named by the SHA-256 of their content, written
whole or not at all. So a block that was cut short or altered is known by its name and encoded
again. Of several processes that would fill the same shelf at once one does, and the others wait for
what it makes; where a file system keeps no locks, a block is only written twice. A cache that
cannot be written is used as far as it goes: it makes a run slower, never wrong.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from vipbench import files
from vipbench.engine.kept import LOCAL_VARIABLE, cache_folder

LIMIT_VARIABLE = "VIPBENCH_CACHE_GB"
DEFAULT_LIMIT_GB = 20.0
MARK = "shelf.json"
FILLING = "filling.lock"
# Who fills a shelf shows a sign of life with every batch. After so many seconds without one nobody
# waits for it any longer.
PATIENCE = 600.0
Item = tuple[int, int]


def cache_limit() -> int:
    """The most bytes that the cache keeps, from `VIPBENCH_CACHE_GB`."""
    return int(float(os.environ.get(LIMIT_VARIABLE, DEFAULT_LIMIT_GB)) * 1e9)


@dataclass
class Shelf:
    """Features (D,) of (image index, view) pairs. problems: what went wrong, for the user."""

    folder: Path
    parts: Mapping[str, Any]
    problems: list[str] = field(default_factory=list)
    # Of each item its row, in features that were put here or in a block on the disk.
    _rows: dict[Item, tuple[Tensor | Path, int]] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)
    _opened: bool = False
    _writable: bool = True

    def get(self, items: Sequence[Item]) -> dict[Item, Tensor]:
        """Those of `items` that are there: item -> (D,)."""
        if not self._opened:
            self._open()
        found: dict[Item, Tensor] = {}
        wanted: dict[Path, list[tuple[Item, int]]] = {}
        for item in items:
            at = self._rows.get(item)
            if at is None:
                continue
            if isinstance(at[0], Path):
                wanted.setdefault(at[0], []).append((item, at[1]))
            else:
                found[item] = at[0][at[1]]
        for file, places in wanted.items():
            block = self._read(file)
            if block is None:
                self._rows = {item: at for item, at in self._rows.items() if at[0] != file}
                continue
            rows = block["features"][[row for _, row in places]]  # a copy; the block may go
            found.update(zip([item for item, _ in places], rows, strict=True))
        return {item: found[item] for item in items if item in found}

    def refresh(self) -> None:
        """Find what others have put there since."""
        self._open()

    def put(self, items: Sequence[Item], features: Tensor) -> None:
        """Keep features (n,D) of n items."""
        features = features.detach().to("cpu", torch.float32).contiguous()
        if self._writable:
            self._write(items, features)
        for row, item in enumerate(items):
            self._rows[item] = features, row

    @contextmanager
    def filling(self, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """In the block no other process fills this shelf, and `get` finds what others have put
        there. waiting: called several times a second while another one is at it."""
        lock = None
        with contextlib.suppress(OSError):  # where it cannot be written `put` will say so
            _make_folder(self.folder)
            lock = files.open_own(self.folder / FILLING)
            _share(self.folder / FILLING)
        try:
            if lock is not None:
                while not _try_lock(lock) and time.time() - os.fstat(lock).st_mtime < PATIENCE:
                    waiting()
                    time.sleep(0.05)
                self.alive()
                self._open()
            yield
        finally:
            if lock is not None:
                os.close(lock)

    def alive(self) -> None:
        """The sign of life of who fills the shelf; also keeps it from being evicted."""
        for name in (FILLING, MARK):
            with contextlib.suppress(OSError):
                os.utime(self.folder / name, follow_symlinks=False)

    def _write(self, items: Sequence[Item], features: Tensor) -> None:
        block = save({"items": torch.tensor(items, dtype=torch.int64), "features": features})
        name = hashlib.sha256(block).hexdigest()
        try:
            _make_folder(self.folder)
            self._write_mark()
            files.write(self.folder / f"{name}.safetensors", block)
            _share(self.folder / f"{name}.safetensors")
            self._seen.add(f"{name}.safetensors")
        except OSError as error:
            self._writable = False
            self.problems.append(
                f"the feature cache cannot be written ({error}); continuing without it"
            )

    def _open(self) -> None:
        """Find the blocks that are there and were not before."""
        self._opened = True
        try:
            names = sorted(os.listdir(self.folder))  # noqa: PTH208 - glob skips what it may not list
            blocks = [
                self.folder / name
                for name in names
                if name.endswith(".safetensors") and name not in self._seen
            ]
            self._seen.update(block.name for block in blocks)
        except FileNotFoundError:
            blocks = []
        except OSError as error:
            blocks = []
            self.problems.append(f"a folder of the feature cache cannot be read ({error})")
        if blocks:
            # The time of last use decides what is evicted first. A cache may be another user's.
            with contextlib.suppress(OSError):
                os.utime(self.folder / MARK, follow_symlinks=False)
        for file in blocks:
            block = self._read(file)
            if block is not None:
                for row, (index, view) in enumerate(block["items"].tolist()):
                    self._rows[index, view] = file, row

    def _read(self, file: Path) -> dict[str, Tensor] | None:
        """A block, in memory; None where it cannot be read or is not what its name says."""
        try:
            content = _copied(file) or _content(file)
        except OSError as error:
            self.problems.append(f"a block of the feature cache cannot be read ({error})")
            return None
        if _digest(content) != file.stem:
            self.problems.append(
                f"a block of the feature cache is damaged and was encoded again: {file.name}"
            )
            self._remove(file)
            return None
        found: dict[str, Tensor] = load(content)
        return found

    def _remove(self, file: Path) -> None:
        try:
            file.unlink()
        except OSError:
            self._writable = False

    def _write_mark(self) -> None:
        mark = self.folder / MARK
        if not mark.exists():
            files.write(mark, json.dumps(self.parts, sort_keys=True, default=str))
            _share(mark)


def _make_folder(folder: Path) -> None:
    """Make the folder of a shelf in a cache. Raises OSError."""
    for made in (folder.parent, folder):
        if not made.is_dir():
            made.mkdir(parents=True, exist_ok=True)
            _share(made)


def _share(path: Path) -> None:
    """Give what was made the group and the group's rights of the folder that it lies in, as a cache
    that a group shares needs whatever each member's umask."""
    with contextlib.suppress(OSError):
        at, own = path.parent.stat(), path.stat()
        if at.st_mode & stat.S_IWGRP and own.st_uid == os.getuid():
            os.chown(path, -1, at.st_gid)
            rights = at.st_mode & 0o2070 if path.is_dir() else at.st_mode & 0o060
            path.chmod(stat.S_IMODE(own.st_mode) | rights)


def _try_lock(lock: int) -> bool:
    """Whether this process has the lock now, or there are no locks here."""
    try:
        import fcntl

        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except (ImportError, OSError):
        return True
    return True


def _content(file: Path) -> bytes:
    with files.open_regular(file) as opened:
        return opened.read()


def _copied(file: Path) -> bytes | None:
    """A block from this node's own copy, which is made where it is missing; None where nobody asked
    for copies or none can be kept."""
    named = os.environ.get(LOCAL_VARIABLE)
    if not named:
        return None
    copy = Path(named) / file.parent.name / file.name
    with contextlib.suppress(OSError):
        content = _content(copy)
        if _digest(content) == copy.stem:
            return content
    content = _content(file)
    with contextlib.suppress(OSError):
        files.make_folder(Path(named))
        # In a folder that everybody may write to, another may have made it.
        if Path(named).stat().st_uid == os.getuid() and file.stem == _digest(content):
            copy.parent.mkdir(exist_ok=True)
            files.write(copy, content)
    return content


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def open_shelf(parts: Mapping[str, Any], folder: Path | None = None) -> Shelf:
    """The shelf of these key parts; change any part and it is another one."""
    text = json.dumps(parts, sort_keys=True, default=str)
    key = hashlib.sha256(text.encode()).hexdigest()
    return Shelf((folder or cache_folder()) / key[:2] / key, parts)


@dataclass(frozen=True)
class ShelfInfo:
    """One shelf on disk: its key parts, bytes, and seconds since the epoch of its last use."""

    folder: Path
    parts: Mapping[str, Any]
    bytes: int
    used: float


def shelves(folder: Path | None = None) -> list[ShelfInfo]:
    """All shelves, the longest unused first."""
    found = []
    for mark in (folder or cache_folder()).glob(f"*/*/{MARK}"):
        try:
            size = sum(f.stat().st_size for f in mark.parent.iterdir())
            parts = json.loads(mark.read_text(encoding="utf-8"))
            found.append(ShelfInfo(mark.parent, parts, size, mark.stat().st_mtime))
        except (OSError, ValueError):
            continue
    return sorted(found, key=lambda shelf: shelf.used)


def evict(limit: int | None = None, folder: Path | None = None, spare: float = 3600.0) -> int:
    """Remove the longest unused shelves until at most `limit` bytes are left; shelves used in the
    last `spare` seconds stay, since a run may hold them. Returns the bytes freed."""
    everything = shelves(folder)
    total, freed = sum(shelf.bytes for shelf in everything), 0
    for shelf in everything:
        if total - freed <= (cache_limit() if limit is None else limit):
            break
        if time.time() - shelf.used > spare:
            shutil.rmtree(shelf.folder, ignore_errors=True)
            freed += shelf.bytes
    return freed


def clear(folder: Path | None = None) -> int:
    """Remove all shelves; returns the bytes freed."""
    return evict(0, folder, spare=-1.0)
