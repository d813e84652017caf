"""A table in each format: text, GitHub, CSV, JSON, HTML, LaTeX."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from collections.abc import Callable, Sequence
from html import escape as as_text

from tabulate import DataRow, Line, TableFormat, tabulate

from vipbench.errors import unknown
from vipbench.results.records.csv import csv_text
from vipbench.results.tables import escape
from vipbench.results.tables.latex import latex
from vipbench.results.tables.parts import equal, legend, row_cells, spans, titles, value
from vipbench.results.tables.table import Table

GLOSSARY = "https://github.com/vipbench/vipbench/blob/main/docs/glossary.md"
# Words of captions that the glossary explains.
_TERMS = re.compile(
    r"(?<![\w-])(backbones?|seeds?|shots|support set|support sampler|training views|"
    r"validation images per class|model selection|transductive)(?![\w-])"
)


def html(table: Table) -> str:
    """A `figure` with the table and its words: elements alone, no script or style, so that it takes
    the looks of the page it is put into. Terms of the caption link to the glossary."""

    def mark(text: str, rank: int | None) -> str:
        return {1: f"<b>{text}</b>", 2: f"<u>{text}</u>"}.get(rank or 0, text)

    levels, heads = table.levels(), len(table.heads)
    columns = range(len(table.columns))
    lines = [
        "<figure>",
        "<table>",
        f"<caption>{_linked(plain(table.caption))}</caption>",
        "<thead>",
    ]
    for depth, level in enumerate(levels[:-1]):
        cells = [f'<th colspan="{heads}"></th>']
        cells += [
            f'<th colspan="{size}" scope="colgroup">{plain(table.heading(start, level))}</th>'
            for start, size in spans(table, levels[: depth + 1])
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    names = [*titles(table), *(table.heading(j, levels[-1]) for j in columns)]
    cells = [f'<th scope="col">{plain(name)}</th>' for name in names]
    lines.append(f"<tr>{''.join(cells)}</tr>")
    lines += ["</thead>", "<tbody>"]
    for i, found in enumerate(row_cells(table, plain)):
        cells = [f'<th scope="row">{cell}</th>' for cell in found]
        cells += [f"<td>{value(table, i, j, mark)}</td>" for j in columns]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    lines += ["</tbody>", "</table>", "<figcaption>"]
    lines += [f"<p>{plain(w)}</p>" for w in (*table.notes, *legend(table, "Bold", "underlined"))]
    return "\n".join([*lines, "</figcaption>", "</figure>"]) + "\n"


def _linked(text: str) -> str:
    """HTML with a link to the glossary at the first use of each of its terms."""
    seen: set[str] = set()

    def link(found: re.Match[str]) -> str:
        new = found[0] not in seen
        seen.add(found[0])
        return f'<a href="{GLOSSARY}">{found[0]}</a>' if new else found[0]

    return _TERMS.sub(link, text)


def plain(text: str) -> str:
    """Text for an element or an attribute in double quotes."""
    return as_text(escape.plain(text))


_CSV_COLUMNS = ("dataset", "backbone", "method", "kind", "metric", "shots", "state")
_CSV_NUMBERS = ("mean", "sd", "n", "n_expected", "rank", "low", "high")
_CSV_LAST = "older_code"


def render(table: Table, format: str = "github") -> str:
    """`table` as text that ends in a line break. Raises UsageError for an unknown format.

    github: one Markdown table, best bold, second underlined. latex: a `table` that needs booktabs
    and nothing else. html: a `table` element in a `figure`, to be put into a page. csv: one line an
    entry, fractions, not rounded. json: everything, fractions. text: for a terminal, as wide as it
    or `COLUMNS`, else 80 columns: blocks by dataset, backbone and metric, `*` best, `°` second.
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
    lines = [
        [*cells, *(value(table, i, j, mark) for j in columns)]
        for i, cells in enumerate(row_cells(table, escape.markdown))
    ]
    names = [*map(escape.markdown, titles(table)), *map(heading, columns)]
    words = [table.caption, *table.notes, *legend(table, "Bold", "underlined")]
    body = _aligned(lines, names, len(table.heads), "pipe")
    return "\n".join([body, "", *(f"{escape.markdown(word)}  " for word in words)]) + "\n"


def _with_unit(table: Table, j: int, level: str) -> str:
    """What the header says of a column at a level; a number of shots says what it is."""
    text = table.heading(j, level)
    if level == "shots" and text != "full":
        text += " shot" if text == "1" else " shots"
    return text


def _aligned(
    lines: Sequence[Sequence[str]], names: Sequence[str], heads: int, form: str | TableFormat
) -> str:
    """Lines below the columns' names; the first `heads` columns begin at their left."""
    align = ["left"] * heads + ["right"] * (len(names) - heads)
    return str(tabulate(lines, headers=names, tablefmt=form, colalign=align, disable_numparse=True))


# For programs.


def _csv(table: Table) -> str:
    lines: list[list[object]] = [[*_CSV_COLUMNS, *_CSV_NUMBERS, _CSV_LAST]]
    for i, line in enumerate(table.entries):
        for j, entry in enumerate(line):
            if entry.state != "blank":
                p = table.place(i, j)
                names = (p.dataset, p.backbone, p.method, p.kind, p.metric)
                numbers = (getattr(entry, name) for name in _CSV_NUMBERS)
                shots = entry.shots if p.shots is None else p.shots
                older = "true" if p.method in table.older else "false"
                lines.append([*names, shots, entry.state, *numbers, older])
    return csv_text(lines)


def _json(table: Table) -> str:
    text = json.dumps(table.to_dict(), ensure_ascii=False, allow_nan=False, indent=1)
    # The same JSON, but harmless where it is put into a page's script element.
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text + "\n"


# For a terminal.

# A terminal that is narrower gets lines of this width.
LEAST_WIDTH = 40
_GAP = DataRow("", "  ", "")
_TERMINAL = TableFormat(
    lineabove=None,
    linebelowheader=Line("", "─", "──", ""),
    linebetweenrows=None,
    linebelow=None,
    headerrow=_GAP,
    datarow=_GAP,
    padding=0,
    with_header_hide=None,
)


def _text(table: Table) -> str:
    labels = row_cells(table, escape.plain, repeat=True)
    levels = table.levels()
    heads = [escape.plain(head) for head in table.heads]
    # Where only methods stand at the rows' beginning their heading is the columns'.
    heads = [levels[-1]] if table.heads == ("method",) else heads
    blocks = []
    most = max(LEAST_WIDTH, shutil.get_terminal_size((80, 24)).columns)
    for start, size in spans(table, levels[:-1]):
        columns = range(start, start + size)
        names = ", ".join(escape.plain(_with_unit(table, start, level)) for level in levels[:-1])
        percent = all(table.columns[j].scale == 100 for j in columns)
        unit = " (%)" if "metric" in levels[:-1] and percent else ""
        title = [f"{names}{unit}"] if names else []
        parts = 1
        while True:
            split = equal(columns, parts)
            some = [_block(table, part, labels, heads, levels[-1]) for part in split]
            if parts == size or max(map(len, "\n".join(some).split("\n"))) <= most:
                break
            parts += 1
        blocks += ["\n".join([*title, one]) for one in some]
    words = [table.caption, *table.notes, *legend(table, "*", "°")]
    return "\n\n".join([*blocks, "\n".join(_wrapped(word, most) for word in words)]) + "\n"


def _block(
    table: Table, columns: Sequence[int], labels: list[list[str]], heads: list[str], level: str
) -> str:
    """Some columns, and the rows that have something there."""

    def mark(text: str, rank: int | None) -> str:
        return {1: f"{text}*", 2: f"{text}°"}.get(rank or 0, text)

    lines = []
    for i, cells in enumerate(labels):
        values = [value(table, i, j, mark) for j in columns]
        if any(values):
            lines.append([*cells, *values])
    below = [*heads, *(escape.plain(table.heading(j, level)) for j in columns)]
    return _aligned(lines, below, len(heads), _TERMINAL)


def _wrapped(text: str, width: int) -> str:
    """Lines that break at words; a longer word, such as a command, stays whole."""
    return textwrap.fill(escape.plain(text), width, break_long_words=False, break_on_hyphens=False)


FORMATS: dict[str, Callable[[Table], str]] = {
    "github": _github,
    "latex": latex,
    "html": html,
    "csv": _csv,
    "json": _json,
    "text": _text,
}
