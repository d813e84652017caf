"""A table in each format. No torch here."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from unicodedata import combining, east_asian_width

from vipbench.errors import unknown
from vipbench.results import escape
from vipbench.results.celltext import legend, row_cells, spans, titles, value
from vipbench.results.export import csv_text
from vipbench.results.render_html import html
from vipbench.results.render_latex import latex
from vipbench.results.table import Table

_CSV_COLUMNS = ("dataset", "backbone", "method", "kind", "metric", "shots", "state")
_CSV_NUMBERS = ("mean", "sd", "n", "n_expected", "rank", "low", "high")


def render(table: Table, format: str = "github") -> str:
    """`table` as text that ends in a line break. Raises UsageError for an unknown format.

    github: one Markdown table, best bold, second underlined. latex: a `table` that needs booktabs
    and nothing else. html: a `table` element in a `figure`, to be put into a page. csv: one line an
    entry, fractions, not rounded. json: everything, fractions. text: for a terminal, one block a
    dataset, backbone and metric, `*` the best, `°` the second.
    """
    if format not in FORMATS:
        raise unknown("table format", format, FORMATS)
    return FORMATS[format](table)


# Markdown.


def _github(table: Table) -> str:
    def mark(text: str, rank: int | None) -> str:
        return {1: f"**{text}**", 2: f"<u>{text}</u>"}.get(rank or 0, text)

    levels = table.levels()

    def heading(j: int) -> str:
        return ", ".join(escape.markdown(_with_unit(table, j, level)) for level in levels)

    columns = range(len(table.columns))
    lines = [[*map(escape.markdown, titles(table)), *map(heading, columns)]]
    for i, cells in enumerate(row_cells(table, escape.markdown)):
        lines.append([*cells, *(value(table, i, j, mark) for j in columns)])
    heads = len(table.heads)
    widths = [max(3, *map(_width, cells)) for cells in zip(*lines, strict=True)]
    rule = ["-" * w for w in widths[:heads]] + ["-" * (w - 1) + ":" for w in widths[heads:]]
    body = [_line(cells, widths, heads) for cells in (lines[0], rule, *lines[1:])]
    words = [table.caption, *table.notes, *legend(table, "Bold", "underlined")]
    return "\n".join([*body, "", *(f"{escape.markdown(word)}  " for word in words)]) + "\n"


def _with_unit(table: Table, j: int, level: str) -> str:
    """What the header says of a column at a level; a number of shots says what it is."""
    text = table.heading(j, level)
    if level == "shots" and text != "full":
        text += " shot" if text == "1" else " shots"
    return text


def _line(cells: Sequence[str], widths: Sequence[int], heads: int) -> str:
    padded = (
        _pad(cell, width, left=k < heads)
        for k, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "| " + " | ".join(padded) + " |"


# For programs.


def _csv(table: Table) -> str:
    lines: list[list[object]] = [[*_CSV_COLUMNS, *_CSV_NUMBERS]]
    for i, line in enumerate(table.entries):
        for j, entry in enumerate(line):
            if entry.state != "blank":
                p = table.place(i, j)
                names = (p.dataset, p.backbone, p.method, p.kind, p.metric)
                numbers = (getattr(entry, name) for name in _CSV_NUMBERS)
                shots = entry.shots if p.shots is None else p.shots
                lines.append([*names, shots, entry.state, *numbers])
    return csv_text(lines)


def _json(table: Table) -> str:
    text = json.dumps(table.to_dict(), ensure_ascii=False, allow_nan=False, indent=1)
    # The same JSON, but harmless where it is put into a page's script element.
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text + "\n"


# For a terminal.


def _text(table: Table) -> str:
    def mark(text: str, rank: int | None) -> str:
        return {1: f"{text}*", 2: f"{text}°"}.get(rank or 0, text)

    labels = row_cells(table, escape.plain, repeat=True)
    levels = table.levels()
    heads = [escape.plain(head) for head in table.heads]
    # Where only methods stand at the rows' beginning their heading is the columns'.
    heads = [levels[-1]] if table.heads == ("method",) else heads
    blocks = []
    for start, size in spans(table, levels[:-1]):
        columns = range(start, start + size)
        names = ", ".join(escape.plain(_with_unit(table, start, level)) for level in levels[:-1])
        percent = all(table.columns[j].scale == 100 for j in columns)
        unit = " (%)" if "metric" in levels[:-1] and percent else ""
        lines = [[*heads, *(escape.plain(table.heading(j, levels[-1])) for j in columns)]]
        for i, cells in enumerate(labels):
            values = [value(table, i, j, mark) for j in columns]
            if any(values):
                lines.append([*cells, *values])
        widths = [max(map(_width, cells)) for cells in zip(*lines, strict=True)]
        padded = [
            "  ".join(
                _pad(cell, width, left=k < len(heads))
                for k, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ).rstrip()
            for cells in lines
        ]
        rule = "─" * (sum(widths) + 2 * len(widths) - 2)
        title = [f"{names}{unit}"] if names else []
        blocks.append("\n".join([*title, padded[0], rule, *padded[1:]]))
    words = [table.caption, *table.notes, *legend(table, "*", "°")]
    return "\n\n".join([*blocks, "\n".join(map(escape.plain, words))]) + "\n"


def _width(text: str) -> int:
    """Columns that a terminal takes for `text`."""
    return sum(
        0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text
    )


def _pad(text: str, width: int, left: bool) -> str:
    fill = " " * (width - _width(text))
    return text + fill if left else fill + text


FORMATS: dict[str, Callable[[Table], str]] = {
    "github": _github,
    "latex": latex,
    "html": html,
    "csv": _csv,
    "json": _json,
    "text": _text,
}
