"""A table in each format. No torch here."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from unicodedata import combining, east_asian_width

from vipbench.errors import unknown
from vipbench.results import escape
from vipbench.results.export import csv_text
from vipbench.results.table import Table

_CSV_COLUMNS = ("dataset", "backbone", "method", "kind", "metric", "shots", "state")
_CSV_NUMBERS = ("mean", "sd", "n", "n_expected", "rank")


def render(table: Table, format: str = "github") -> str:
    """`table` as text that ends in a line break. Raises UsageError for an unknown format.

    github: one Markdown table, best bold, second underlined. latex: a `table` that needs booktabs
    and nothing else. csv: one line an entry, fractions, not rounded. json: everything, fractions.
    text: for a terminal, one block a dataset, backbone and metric, `*` the best, `°` the second.
    """
    if format not in FORMATS:
        raise unknown("table format", format, FORMATS)
    return FORMATS[format](table)


def _value(
    table: Table, i: int, j: int, mark: Callable[[str, int | None], str], plus_minus: str
) -> str:
    """An entry's text; `mark` shows a mean's rank."""
    entry = table.entries[i][j]
    if entry.state == "unfinished":
        return f"– ({entry.n} of {entry.n_expected})"
    if entry.mean is None:
        return ""
    text = mark(table.number(entry.mean, j), entry.rank)
    if entry.sd is not None:
        text += f"{plus_minus}{table.number(entry.sd, j)}"
    n = table.differing_n(i, j)
    return text if n is None else f"{text} (n={n})"


def _labels(table: Table, escaped: Callable[[str], str]) -> list[str]:
    return [
        escaped(row.label) + (f" {escaped('†')}" if row.kind == "transductive" else "")
        for row in table.rows
    ]


def _legend(table: Table, best: str, second: str) -> list[str]:
    ranks = {entry.rank for line in table.entries for entry in line}
    if 1 not in ranks:
        return []
    told = f"{best}: best of a column" + (f"; {second}: second" if 2 in ranks else "")
    return [f"{told}, as shown; equal numbers share the place."]


# Markdown.


def _github(table: Table) -> str:
    def mark(text: str, rank: int | None) -> str:
        return {1: f"**{text}**", 2: f"<u>{text}</u>"}.get(rank or 0, text)

    levels = table.levels()

    def heading(j: int) -> str:
        column = table.columns[j]
        parts = [escape.markdown(table.heading(j, level)) for level in levels[:-1]]
        shots = column.shots
        if isinstance(shots, str):
            parts.append("full")
        else:
            parts.append(f"{shots} shot" if shots == 1 else f"{shots} shots")
        return ", ".join(parts)

    columns = range(len(table.columns))
    lines = [["method", *map(heading, columns)]]
    for i, label in enumerate(_labels(table, escape.markdown)):
        lines.append([label, *(_value(table, i, j, mark, " ± ") for j in columns)])
    widths = [max(3, *map(_width, cells)) for cells in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    body = [_line(cells, widths) for cells in (lines[0], rule, *lines[1:])]
    words = [table.caption, *table.notes, *_legend(table, "Bold", "underlined")]
    return "\n".join([*body, "", *(f"{escape.markdown(word)}  " for word in words)]) + "\n"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = (
        _pad(cell, width, left=not k)
        for k, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "| " + " | ".join([first, *rest]) + " |"


# LaTeX.


def _latex(table: Table) -> str:
    def mark(text: str, rank: int | None) -> str:
        return {1: f"\\textbf{{{text}}}", 2: f"\\underline{{{text}}}"}.get(rank or 0, text)

    def value(i: int, j: int) -> str:
        text = _value(table, i, j, mark, r" $\pm$ ")
        return text.replace("–", "--")

    levels = table.levels()
    columns = range(len(table.columns))
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{escape.latex(table.caption)}}}"]
    lines += [rf"\begin{{tabular}}{{l{'c' * len(columns)}}}", r"\toprule"]
    for depth, level in enumerate(levels[:-1]):
        spans = _spans(table, levels[: depth + 1])
        heads = [
            rf"\multicolumn{{{size}}}{{c}}{{{escape.latex(table.heading(start, level))}}}"
            for start, size in spans
        ]
        lines.append(rf" & {' & '.join(heads)} \\")
        if any(size > 1 for _, size in spans):
            rules = [rf"\cmidrule(lr){{{start + 2}-{start + size + 1}}}" for start, size in spans]
            lines.append(" ".join(rules))
    shots = [escape.latex(table.heading(j, "shots")) for j in columns]
    lines += [rf"Method & {' & '.join(shots)} \\", r"\midrule"]
    for i, label in enumerate(_labels(table, escape.latex)):
        # An empty group first: a name that begins with a rule's or a row's argument is a name.
        lines.append(rf"{{}}{label} & {' & '.join(value(i, j) for j in columns)} \\")
        after_majority = i + 1 < len(table.rows) and table.rows[i].kind == "majority"
        if after_majority:
            lines.append(r"\midrule")
    lines += [r"\bottomrule", r"\end{tabular}"]
    words = [*table.notes, *_legend(table, "Bold", "underlined")]
    if words:
        lines.append(r"\par\smallskip\footnotesize")
        lines += [rf"{escape.latex(word)}\par" for word in words]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _spans(table: Table, levels: Sequence[str]) -> list[tuple[int, int]]:
    """(first column, how many) of neighbours that agree on all of `levels`."""
    spans, start = [], 0
    keys = [tuple(table.heading(j, level) for level in levels) for j in range(len(table.columns))]
    for _, group in itertools.groupby(keys):
        size = len(list(group))
        spans.append((start, size))
        start += size
    return spans


# For programs.


def _csv(table: Table) -> str:
    lines: list[list[object]] = [[*_CSV_COLUMNS, *_CSV_NUMBERS]]
    for row, line in zip(table.rows, table.entries, strict=True):
        for column, entry in zip(table.columns, line, strict=True):
            if entry.state != "blank":
                names = (column.dataset, column.backbone, row.label, row.kind, column.metric)
                numbers = (getattr(entry, name) for name in _CSV_NUMBERS)
                lines.append([*names, column.shots, entry.state, *numbers])
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

    labels = _labels(table, escape.plain)
    levels = table.levels()[:-1]
    blocks = []
    for start, size in _spans(table, levels):
        columns = range(start, start + size)
        names = ", ".join(escape.plain(table.heading(start, level)) for level in levels)
        unit = " (%)" if table.columns[start].scale == 100 else ""
        lines = [["shots", *(escape.plain(table.heading(j, "shots")) for j in columns)]]
        for i, label in enumerate(labels):
            values = [_value(table, i, j, mark, " ± ") for j in columns]
            if any(values):
                lines.append([label, *values])
        widths = [max(map(_width, cells)) for cells in zip(*lines, strict=True)]
        padded = [
            "  ".join(
                _pad(cell, width, left=not k)
                for k, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ).rstrip()
            for cells in lines
        ]
        rule = "─" * (sum(widths) + 2 * len(widths) - 2)
        blocks.append("\n".join([f"{names}{unit}", padded[0], rule, *padded[1:]]))
    words = [table.caption, *table.notes, *_legend(table, "*", "°")]
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
    "latex": _latex,
    "csv": _csv,
    "json": _json,
    "text": _text,
}
