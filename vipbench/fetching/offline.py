"""`--offline`: no connection is opened, whoever tries."""

from __future__ import annotations

import os
import sys
from typing import Any

VARIABLE = "VIPBENCH_OFFLINE"
# The Hub's libraries read theirs when they are imported.
_LIBRARIES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_CONNECTING = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
_installed = False


class OfflineError(ConnectionError):
    """Something tried to open a connection where none may be."""


def forbidden() -> str | None:
    """The environment variable that forbids connections, None where they are allowed."""
    return next((name for name in (VARIABLE, *_LIBRARIES) if _is_set(name)), None)


def forbid() -> None:
    """Forbid connections to this process, from now on, and to those that it starts.

    The libraries of the Hub are set offline; whatever else tries, plugins too, meets OfflineError.
    """
    global _installed
    for name in (VARIABLE, *_LIBRARIES):
        os.environ[name] = "1"
    if not _installed:
        _installed = True
        sys.addaudithook(_refuse)


def obey() -> None:
    """`forbid`, where the environment says so."""
    if _is_set(VARIABLE):
        forbid()


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() in ("1", "true", "yes", "on")


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _CONNECTING:
        return
    target = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments[:2]
    if not isinstance(target, tuple):
        return  # a socket within the machine that has a path for its address
    place = ":".join(map(str, target[:2]))
    raise OfflineError(f"a connection to {place} was refused, since {VARIABLE} forbids all")
