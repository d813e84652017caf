"""Plain words for the terminal, logs and pages."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence

from vipbench.errors import one_line

LONGEST = 500


def clean(text: str, longest: int = LONGEST) -> str:
    """One line without control characters, whatever a plugin or a file wrote; cut if too long."""
    line = one_line(text)
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def plural(count: int, noun: str) -> str:
    """`1 cell`, `2,345 cells`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(values: Iterable[object]) -> str:
    """`a, b, c`."""
    return ", ".join(str(value) for value in values)


def ranges(numbers: Sequence[int]) -> str:
    """`1-8, 12`: runs of three and more are drawn together."""
    parts: list[str] = []
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    for found in runs:
        parts += [f"{found[0]}-{found[-1]}"] if len(found) > 2 else [str(n) for n in found]
    return ", ".join(parts)


def shots_text(shots: int | str) -> str:
    """`zero-shot`, `1 shot`, `4 shots`, `full`."""
    if shots == 0:
        return "zero-shot"
    return "full" if shots == "full" else f"{shots} shot{'' if shots == 1 else 's'}"


def duration(seconds: float) -> str:
    """`40 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    units = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    first = next(i for i, (_, size) in enumerate(units) if whole >= size)
    (big, size), (small, step) = units[first : first + 2]
    rest = whole % size // step
    return f"{whole // size} {big}" + (f" {rest} {small}" if rest else "")


def png_url(image: bytes) -> str:
    """A PNG file as the address that embeds it in a page or a request."""
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def columns(rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines with aligned columns, two spaces apart, never wrapped."""
    cells = [[clean(str(value)) for value in row] for row in rows]
    if not cells:
        return []
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
