"""Standard output and error as everything is printed to: without control characters."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO, cast

from vipbench.errors import printable


class Printed:
    """A stream that shows control characters instead of sending them; all else is `stream`'s."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """See TextIO."""
        self.stream.write(printable(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """See TextIO."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def clean_streams() -> None:
    """Have this process print so from now on, whoever prints."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, Printed):
            # A terminal or log that cannot show `±` must not end a run of days.
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, cast(TextIO, Printed(stream)))


def raw(stream: TextIO) -> TextIO:
    """The stream as it was, for what draws with control characters of its own."""
    return stream.stream if isinstance(stream, Printed) else stream
