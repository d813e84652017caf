"""Files with a checksum before their content, written whole or not at all, for a disk that several
machines share: without locks; a reader detects a file that is incomplete or altered."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import zlib
from pathlib import Path
from typing import Any

from vipbench.files import NO_FILE

# Whoever writes a file beside its place and dies leaves it under such a name.
UNFINISHED = ".part"


# A file may become so large, or so many times as large as it is.
MOST_BYTES, MOST_TIMES = 64 << 20, 100


class DamagedError(ValueError):
    """A file that is not what was written; the message names it."""


def write(path: Path, body: bytes, head: Any = None, sync: bool = False) -> None:
    """Write `body`, and before it `head`, JSON values that `read_head` reads alone. sync: whether
    it is on the disk on return. Raises OSError."""
    content = json.dumps(head, separators=(",", ":")).encode() + b"\n" + zlib.compress(body, 6)
    digest = hashlib.sha256(content).hexdigest().encode()
    part = path.with_name(f".{socket.gethostname()}-{secrets.token_hex(8)}{UNFINISHED}")
    try:
        with part.open("xb") as file:
            file.write(digest + b"\n" + content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None


def read(path: Path) -> tuple[Any, bytes]:
    """Head and body. Raises DamagedError, FileNotFoundError, OSError."""
    content = _content(path)
    head, _, body = content.partition(b"\n")
    packed = zlib.decompressobj()
    found = packed.decompress(body, max(MOST_BYTES, MOST_TIMES * len(body)))
    if not packed.eof:
        raise DamagedError(f"{path}: its {len(body)} bytes unpack to more than is possible")
    return json.loads(head), found


def read_head(path: Path) -> Any:
    """The head alone; only `read` checks it. Raises DamagedError, OSError."""
    with path.open("rb") as file:
        file.readline()
        try:
            return json.loads(file.readline())
        except ValueError:
            raise DamagedError(f"{path} was cut short or altered") from None


def _content(path: Path) -> bytes:
    if path.is_symlink() or not path.is_file():
        if not path.exists():
            raise FileNotFoundError(2, "no such file", str(path))
        raise DamagedError(f"{path}: {NO_FILE}")
    digest, _, content = path.read_bytes().partition(b"\n")
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise DamagedError(f"{path} was cut short or altered")
    return content


def write_json(path: Path, value: Any) -> None:
    """Keep JSON values. Raises OSError."""
    write(path, json.dumps(value).encode(), sync=True)


def read_json(path: Path, default: Any = None) -> Any:
    """The values kept there, `default` where there are none. Raises DamagedError, OSError."""
    try:
        return json.loads(read(path)[1])
    except FileNotFoundError:
        return default
