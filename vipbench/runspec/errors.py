"""What pydantic says of a RunSpec's values, as one line for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from vipbench.errors import UsageError, unknown
from vipbench.runspec import values as words
from vipbench.runspec.yaml import Document, Place


class PlacedError(UsageError):
    """A UsageError that knows where inside its value it arose."""

    def __init__(self, message: str, place: Place) -> None:
        super().__init__(message)
        self.place = place


def usage_error(
    error: ValidationError, fields: Mapping[str, Any], source: str, document: Document | None
) -> UsageError:
    """The first of pydantic's complaints as one line, and how many more keys are wrong."""
    # A default that depends on a wrong key is no further mistake.
    errors = [e for e in error.errors(include_url=False) if "default_factory" not in e["type"]]
    first = errors[0]
    text = sentence(first, fields, "" if document else "--")
    place: Place = first["loc"][:1]
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, PlacedError):
        place += inner.place
    more = len({e["loc"][:1] for e in errors}) - 1
    rest = f" (and {more} more wrong)" if more else ""
    line = document.line(place) if document and place else None
    where = ", ".join(part for part in (source, f"line {line}" if line else "") if part)
    return UsageError(f"{where}{': ' if where else ''}{text}{rest}")


def sentence(error: Any, fields: Mapping[str, Any], prefix: str) -> str:
    """One of pydantic's complaints in our words; `fields`: the known keys; `prefix` of the key."""
    key = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        return str(unknown("key", key if key.isprintable() else ascii(key)[1:-1], fields))
    name = f"{prefix}{key.replace('_', '-') if prefix == '--' else key}: " if key else ""
    context = error.get("ctx", {})
    if isinstance(context.get("error"), UsageError):
        return f"{name}{context['error']}"
    what = f"expected {context['expected']}" if "expected" in context else error["msg"]
    return f"{name}{what}, got {words.show(error['input'])}"
