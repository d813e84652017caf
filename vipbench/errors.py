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


# More names than these are counted in a message, not listed.
MOST_LISTED = 120


def nearest(given: str, names: Iterable[str], cutoff: float = 0.5) -> list[str]:
    """At most three of `names` that `given` may mean: those that begin with it, are spelled
    alike, or contain it."""
    asked = given.casefold()
    by_fold = {name.casefold(): name for name in names}
    longer = sorted((name for name in by_fold if asked and asked in name), key=len)
    found = [name for name in longer if name.startswith(asked)]
    found += get_close_matches(asked, by_fold, n=3, cutoff=cutoff)
    return [by_fold[name] for name in dict.fromkeys([*found, *longer])][:3]


def unknown(
    kind: str, given: str, known: Iterable[str], hint: str = "", meant: Iterable[str] = ()
) -> UsageError:
    """An unknown name, with what it may mean (`meant`, else close matches) and what there is."""
    names = sorted(known)
    close = list(meant) or nearest(given, names)
    asked = f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else "."
    listed = f"Known: {', '.join(names)}."
    if len(names) > MOST_LISTED:
        some = "" if close else f", such as {', '.join(nearest(given, names, 0.0))}"
        listed = f"{len(names):,} are known{some}."
    return UsageError(" ".join(filter(None, [f"unknown {kind} '{given}'{asked}", listed, hint])))
