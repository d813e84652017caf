"""A table in each format: text, GitHub, CSV, JSON, HTML, LaTeX."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from html import escape as as_text

from tabulate import DataRow, Line, TableFormat, tabulate

from vipbench.errors import unknown
from vipbench.results.records.csv import csv_text
from vipbench.results.tables import escape
from vipbench.results.tables.table import LEVELS, Table

Mark = Callable[[str, int | None], str]


def value(table: Table, i: int, j: int, mark: Mark, plus_minus: str = " ± ") -> str:
    """An entry's text; `mark` shows a mean's rank. An interval is never written as a deviation:
    `81.2 ± 1.3` is the one, `81.2 (79.0 to 83.1)` the other."""
    entry = table.entries[i][j]
    if entry.state == "unfinished":
        return f"– ({entry.n} of {entry.n_expected})"
    if entry.mean is None:
        return ""
    text = mark(table.number(entry.mean, i, j), entry.rank)
    text += "" if entry.saw is None else "†"
    if table.spread == "sd" and entry.sd is not None:
        text += f"{plus_minus}{table.number(entry.sd, i, j)}"
    if entry.low is not None and entry.high is not None:
        text += f" ({table.number(entry.low, i, j)} to {table.number(entry.high, i, j)})"
    if entry.gain is not None:
        text += f" ({table.number(entry.gain, i, j, signed=True)})"
    n = table.differing_n(i, j)
    return text if n is None else f"{text} (n={n})"


def row_cells(table: Table, escaped: Callable[[str], str], repeat: bool = False) -> list[list[str]]:
    """What stands at each row's beginning. What is as in the row above is left out, unless
    `repeat`; a method has its `Table.marks`."""
    out, above = [], ("",) * len(table.heads)
    for row in table.rows:
        cells = []
        for k, cell in enumerate(row.cells):
            same = not repeat and k + 1 < len(row.cells) and row.cells[: k + 1] == above[: k + 1]
            text = "" if same else escaped(cell)
            if cell == row.label and table.marks(row.label):
                text += f" {escaped(table.marks(row.label).strip())}"
            cells.append(text)
        out.append(cells)
        above = row.cells
    return out


def titles(table: Table) -> list[str]:
    """The table's heads as a document shows them: words of this program begin with a capital, as
    metrics do; names of methods and hyperparameters are names."""
    ours = (*LEVELS, "knowledge")
    return [head.capitalize() if head in ours else head for head in table.heads]


def new_block(table: Table, i: int) -> bool:
    """Whether a rule belongs above row i: after the majority row, or where the first of several
    cells changes."""
    if i == 0:
        return False
    row, above = table.rows[i], table.rows[i - 1]
    if len(row.cells) > 1 and table.heads[0] in ("dataset", "backbone", "metric", "shots"):
        return row.cells[0] != above.cells[0]
    return above.kind == "majority" and row.kind != "majority"


def legend(table: Table, best: str, second: str) -> list[str]:
    """What the marks mean."""
    ranks = {entry.rank for line in table.entries for entry in line}
    if 1 not in ranks or table.ranks == "none":
        return []
    if table.ranks == "significant":
        return [f"{best}: no other method of the column is significantly better."]
    text = f"{best}: best of a column" + (f"; {second}: second" if 2 in ranks else "")
    return [f"{text}, as shown; equal numbers share the place."]


def spans(table: Table, levels: Sequence[str]) -> list[tuple[int, int]]:
    """(first column, how many) of neighbours that agree on all of `levels`."""
    found, start = [], 0
    keys = [tuple(table.heading(j, level) for level in levels) for j in range(len(table.columns))]
    for _, group in itertools.groupby(keys):
        size = len(list(group))
        found.append((start, size))
        start += size
    return found


def html(table: Table) -> str:
    """A `figure` with the table and its words: elements alone, no script, style or link, so that it
    takes the looks of the page it is put into."""

    def mark(text: str, rank: int | None) -> str:
        return {1: f"<b>{text}</b>", 2: f"<u>{text}</u>"}.get(rank or 0, text)

    levels, heads = table.levels(), len(table.heads)
    columns = range(len(table.columns))
    lines = ["<figure>", "<table>", f"<caption>{plain(table.caption)}</caption>", "<thead>"]
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


def plain(text: str) -> str:
    """Text for an element or an attribute in double quotes."""
    return as_text(escape.plain(text))


def latex(table: Table) -> str:
    """A `table` that compiles as it is where booktabs is loaded."""

    def mark(text: str, rank: int | None) -> str:
        return {1: f"\\textbf{{{text}}}", 2: f"\\underline{{{text}}}"}.get(rank or 0, text)

    def entry(i: int, j: int) -> str:
        text = value(table, i, j, mark, r" $\pm$ ").replace("–", "--")
        text = text.replace("†", r"$^\dagger$")
        return text.replace("(-", "($-$") if "(-" in text else text

    levels, heads = table.levels(), len(table.heads)
    columns = range(len(table.columns))
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape.latex(table.caption)}}}",
        r"\smallskip",
    ]
    lines += [rf"\begin{{tabular}}{{{'l' * heads}{'c' * len(columns)}}}", r"\toprule"]
    empty = " & " * (heads - 1)
    for depth, level in enumerate(levels[:-1]):
        found = spans(table, levels[: depth + 1])
        counts = [
            rf"\multicolumn{{{size}}}{{c}}{{{escape.latex(table.heading(start, level))}}}"
            for start, size in found
        ]
        lines.append(rf"{empty} & {' & '.join(counts)} \\")
        if any(size > 1 for _, size in found):
            first = heads + 1
            rules = [
                rf"\cmidrule(lr){{{start + first}-{start + size + heads}}}" for start, size in found
            ]
            lines.append(" ".join(rules))
    last = [escape.latex(table.heading(j, levels[-1])) for j in columns]
    # An empty group first: a name that begins with a rule's or a row's argument is a name.
    names = [escape.latex(title) for title in titles(table)]
    lines += [rf"{' & '.join([*names, *last])} \\", r"\midrule"]
    for i, cells in enumerate(row_cells(table, escape.latex)):
        if new_block(table, i):
            lines.append(r"\midrule")
        lines.append(rf"{{}}{' & '.join([*cells, *(entry(i, j) for j in columns)])} \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    words = [*table.notes, *legend(table, "Bold", "underlined")]
    if words:
        lines.append(r"\par\smallskip\footnotesize")
        lines += [rf"{escape.latex(word)}\par" for word in words]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


_CSV_COLUMNS = ("dataset", "backbone", "method", "kind", "metric", "shots", "state")
_CSV_NUMBERS = ("mean", "sd", "n", "n_expected", "rank", "low", "high")
_CSV_LAST = "older_code"


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
        lines = []
        for i, cells in enumerate(labels):
            values = [value(table, i, j, mark) for j in columns]
            if any(values):
                lines.append([*cells, *values])
        below = [*heads, *(escape.plain(table.heading(j, levels[-1])) for j in columns)]
        title = [f"{names}{unit}"] if names else []
        blocks.append("\n".join([*title, _aligned(lines, below, len(heads), _TERMINAL)]))
    words = [table.caption, *table.notes, *legend(table, "*", "°")]
    return "\n\n".join([*blocks, "\n".join(map(escape.plain, words))]) + "\n"


FORMATS: dict[str, Callable[[Table], str]] = {
    "github": _github,
    "latex": latex,
    "html": html,
    "csv": _csv,
    "json": _json,
    "text": _text,
}
