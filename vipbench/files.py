"""Files written whole, and never through a link that somebody left in the folder."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, Literal

NO_FILE = "it is a link, has a second name or is not a regular file; remove it"


@contextmanager
def replacing(
    target: Path, mode: Literal["w", "wb"] = "w", private: bool = False
) -> Iterator[IO[Any]]:
    """A new file beside `target` that takes its place when the block ends without an error.

    Text is UTF-8 with "\\n" at the ends of lines. Its name is random and it must not exist yet, so
    that no link is followed; a target that is a link is itself replaced. private: its owner alone
    can read it, and it is on the disk at the end. Raises OSError, which names `target`.
    """
    if target.exists() and not target.is_file():
        raise FileExistsError(errno.EEXIST, "it is not a regular file", str(target))
    part = target.with_name(f".{secrets.token_hex(8)}.part")
    text: dict[str, Any] = {} if mode == "wb" else {"encoding": "utf-8", "newline": "\n"}

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags, 0o600 if private else 0o666)

    try:
        # "x": it must not be there yet, as a link either.
        file = open(part, mode.replace("w", "x"), opener=opener, **text)  # noqa: SIM115
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from None
    try:
        with file:
            yield file
            if private:
                file.flush()
                os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def write(target: Path, content: str | bytes) -> None:
    """Write a whole file; see `replacing`. Raises OSError."""
    with replacing(target, "w" if isinstance(content, str) else "wb") as file:
        file.write(content)


def differs(path: Path, content: bytes) -> bool:
    """Whether writing `content` would change anything at `path`; a link always differs."""
    return path.is_symlink() or not path.is_file() or path.read_bytes() != content


def open_regular(path: Path) -> BufferedReader:
    """A file to be read. Raises OSError, also for a pipe, which would be waited for without end,
    for a device and for a folder."""
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
    handle = os.open(path, flags | getattr(os, "O_BINARY", 0))
    kind = os.fstat(handle).st_mode
    if not stat.S_ISREG(kind):
        os.close(handle)
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(handle, "rb")


def open_own(path: Path, flags: int = 0) -> int:
    """Descriptor of a file that is kept from one process to the next, made where it is missing.
    Raises OSError where it is a link, has a second name, or is no regular file."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR):
            raise FileExistsError(errno.EEXIST, NO_FILE, str(path)) from None
        raise
    state = os.fstat(handle)
    if not stat.S_ISREG(state.st_mode) or state.st_nlink > 1:
        os.close(handle)
        raise FileExistsError(errno.EEXIST, NO_FILE, str(path))
    return handle


def make_folder(path: Path, within: Path | None = None) -> None:
    """Make a folder whose name is not the user's choice. within: the folder above it that is, where
    that is not the next. Raises FileExistsError for a link below it."""
    for part in (path, *path.parents):
        if part == within:
            break
        if part.is_symlink():
            raise FileExistsError(errno.EEXIST, "it is a link; remove it", str(part))
        if within is None:
            break
    path.mkdir(parents=True, exist_ok=True)
