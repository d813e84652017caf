"""Errors that the command line turns into one clear message. No torch here."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UsageError(ValueError):
    """What was asked for cannot be done as asked: exit status 2, nothing was run."""


def one_line(text: str) -> str:
    """`text` without control characters, whatever a plugin or a file wrote."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def unknown(kind: str, given: str, known: Iterable[str], hint: str = "") -> UsageError:
    """An unknown name, with close matches and what there is."""
    names = sorted(known)
    close = get_close_matches(given, names, n=3, cutoff=0.5)
    meant = f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else "."
    tail = f" {hint}" if hint else ""
    return UsageError(f"unknown {kind} '{given}'{meant} Known: {', '.join(names)}.{tail}")
