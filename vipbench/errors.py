"""Errors that the command line turns into one clear message."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches


class UsageError(ValueError):
    """A usage error: exit status 2, nothing was run."""


def one_line(text: str) -> str:
    """`text` without control characters, whatever a plugin or a file wrote."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


# All but the ends of lines and tabs; and what turns the direction of a line around.
_CONTROLS = re.compile(
    "\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


def printable(text: str) -> str:
    """`text` with control characters as `\\u001b`, which JSON reads as well, so that no terminal
    obeys what a file brought."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def unknown(kind: str, given: str, known: Iterable[str], hint: str = "") -> UsageError:
    """An unknown name, with close matches and what there is."""
    names = sorted(known)
    close = get_close_matches(given, names, n=3, cutoff=0.5)
    meant = f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else "."
    tail = f" {hint}" if hint else ""
    return UsageError(f"unknown {kind} '{given}'{meant} Known: {', '.join(names)}.{tail}")
