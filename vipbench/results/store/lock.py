"""One writer to an output folder."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path

from vipbench.files import open_own


class StoreError(RuntimeError):
    """A results folder that cannot be used; the message names the file, what is wrong with it, and
    what to do."""


# POSIX locks belong to the process: it could take its own lock a second time, and would drop the
# first by closing the second. So a process remembers what it holds; a fork holds nothing.
_held: dict[str, int] = {}


class WriterLock:
    """An exclusive lock on a file, held until `release` or until the process ends, however it ends.

    A POSIX record lock: unlike flock's it is not inherited by forked workers, which may outlive a
    killed driver, and NFS (version 4, or 3 with lockd) keeps it between machines.
    """

    def __init__(self, path: Path) -> None:
        """Take the lock. Raises StoreError, naming the holder, where another process has it."""
        self._path = path
        self._name = str(path.resolve())
        if _held.get(self._name) == os.getpid():
            raise StoreError(f"{path.parent} is already open for writing in this process")
        self._fd = self._take()
        _held[self._name] = os.getpid()
        self._sign()

    def keep(self) -> None:
        """Take the lock anew where its file was removed or replaced meanwhile. Raises StoreError,
        naming the holder, where another process was faster, OSError."""
        mine = os.fstat(self._fd)
        try:
            there = self._path.stat(follow_symlinks=False)
        except FileNotFoundError:
            there = None
        if there is not None and os.path.samestat(there, mine):
            return
        try:
            fresh = self._take()
        except StoreError as error:
            raise StoreError(
                f"{self._path} was removed or replaced during the run; what it had "
                f"finished is kept. {error}"
            ) from None
        os.close(self._fd)
        self._fd = fresh
        self._sign()

    def _take(self) -> int:
        """Descriptor of the locked file. Raises StoreError, OSError."""
        try:
            import fcntl
        except ImportError:
            raise StoreError(
                f"{self._path}: this system has no POSIX file locks; results can be read but not "
                f"written"
            ) from None
        found = open_own(self._path)
        try:
            fcntl.lockf(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _read_holder(found) if error.errno in (errno.EACCES, errno.EAGAIN) else None
            os.close(found)
            raise StoreError(_refusal(self._path, error, holder)) from None
        return found

    def _sign(self) -> None:
        me = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._write(json.dumps(me) + "\n")

    def release(self) -> None:
        """Give the lock back; the file stays, since removing it could hit a newcomer's lock."""
        if _held.get(self._name) == os.getpid():
            self._write("")
            os.close(self._fd)
            del _held[self._name]

    def _write(self, text: str) -> None:
        # Who holds the lock is a courtesy to the next comer: a full disk must not stop this one.
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, text.encode(), 0)
        except OSError:
            pass


def _read_holder(lock: int) -> dict[str, object]:
    # The holder writes its name just after it takes the lock.
    for _ in range(10):
        try:
            holder = json.loads(os.pread(lock, 4096, 0))
        except (OSError, ValueError):
            time.sleep(0.02)
            continue
        return holder if isinstance(holder, dict) else {}
    return {}


def _refusal(path: Path, error: OSError, holder: dict[str, object] | None) -> str:
    if holder is None:
        return (
            f"{path} cannot be locked ({error.strerror}): this file system has no locks, so two "
            f"runs could damage each other's results; give an output folder on another one"
        )
    who = (
        f"process {holder['pid']} on host {holder['host']}, started {holder['started']}"
        if {"pid", "host", "started"} <= holder.keys()
        else "another process"
    )
    return (
        f"{path.parent} is in use: {who}, is writing to it. Wait for it, stop it, or give another "
        f"output folder; a second driver on the same folder would do the same cells twice"
    )


def take_lock(folder: Path, name: str) -> WriterLock:
    """Make `folder` where it is missing and take the lock `name` in it. Raises StoreError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return WriterLock(folder / name)
    except OSError as error:
        raise StoreError(
            f"{error.filename or folder} cannot be written ({error.strerror}); give another "
            "output folder"
        ) from None
