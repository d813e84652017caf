"""A table as LaTeX that fits the column of a two-column paper.

The width is estimated from the widths of Computer Modern, wider than Times. What is too wide for
one `tabular` becomes several below each other, or several tables.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from vipbench.results.tables import escape
from vipbench.results.tables.parts import equal, legend, new_block, row_cells, spans, titles, value
from vipbench.results.tables.table import Table

# Points of the narrowest column to fit: CVPR's; IEEEtran's has 252, llncs and article over 340.
COLUMN = 234.0
# Sizes of type, the smaller where it saves a second tabular, and the space on each side of a cell.
SIZES = ((r"\small", 9.2, 4.0), (r"\footnotesize", 8.5, 3.0))
# Rows of all tabulars of one float, about what a page holds.
MOST_ROWS = 48
# The share of the column that names of rows take at most; longer ones are broken into lines.
NAMES = 0.42

# Widths in thousandths of the size.
_WIDTHS = {
    **dict.fromkeys("ijl.,:;'|![]", 290),
    **dict.fromkeys("rtfs()-` ", 392),
    **dict.fromkeys("cezaoq0123456789/*?_$", 500),
    **dict.fromkeys("mM%W@", 900),
    **dict.fromkeys("+=±−<>&w~#", 778),
}
_BOLD = 1.16
_PLUS_MINUS = r"$\pm$"


def latex(table: Table) -> str:
    """Tables that compile as they are where booktabs is loaded: usually one."""
    parts = _parts(table)
    floats: list[list[str]] = [[]]
    rows = 0
    for part in parts:
        if floats[-1] and rows + len(table.rows) > MOST_ROWS:
            floats.append([])
            rows = 0
        floats[-1].append(part)
        rows += len(table.rows)
    lead = table.lead or table.caption
    words = [table.caption[len(lead) :].strip()] if table.lead else []
    words += [*table.notes, *legend(table, "Bold", "underlined")]
    out = []
    for number, tabulars in enumerate(floats):
        caption = lead if number == 0 else f"{lead.rstrip('.')} (continued)."
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{breakable(caption)}}}"]
        lines += [r"\smallskip", *tabulars[:1]]
        for tabular in tabulars[1:]:
            lines += [r"\par\medskip", tabular]
        if number + 1 == len(floats) and any(words):
            lines.append(r"\par\smallskip\raggedright\footnotesize")
            lines += [rf"{breakable(word)}\par" for word in words if word]
        out.append("\n".join([*lines, r"\end{table}"]) + "\n")
    return "\n".join(out)


def breakable(text: str, most: int = 12) -> str:
    """Text whose words of over `most` characters may be broken: behind punctuation, or after so
    many."""
    words = re.split(r"( )", escape.plain(text))
    pieces = ([word] if len(word) <= most else _pieces(word, most) for word in words)
    return "".join(r"\allowbreak{}".join(map(escape.latex, own)) for own in pieces)


def _pieces(word: str, most: int) -> list[str]:
    found, piece = [], ""
    for char in word:
        piece += char
        if (char in "/-_=[],.:;+(){}|" and len(piece) > 2) or len(piece) == most:
            found.append(piece)
            piece = ""
    return [*found, piece] if piece else found


@dataclass(frozen=True)
class _Sizes:
    """Widths in thousandths of the size of type: of the names of each row, and of each column."""

    names: tuple[float, ...]
    columns: tuple[float, ...]


def _parts(table: Table) -> list[str]:
    """The tabulars, one below the other."""
    levels = table.levels()
    sizes = _measured(table, levels)
    for name, points, sep in SIZES:
        if _fits(sizes, range(len(table.columns)), points, sep):
            return [_tabular(table, levels, sizes, name, points, sep)]
    name, points, sep = SIZES[-1]
    groups = [list(range(start, start + n)) for start, n in spans(table, levels[:-1])]
    split = _chunks(sizes, groups, points, sep)
    return [_tabular(_part(table, own), levels, sizes, name, points, sep) for own in split]


def _part(table: Table, columns: Sequence[int]) -> Table:
    """Some columns, and the rows that have something there."""
    rows = [
        i for i, line in enumerate(table.entries) if any(line[j].state != "blank" for j in columns)
    ]
    return replace(
        table,
        columns=tuple(table.columns[j] for j in columns),
        rows=tuple(table.rows[i] for i in rows),
        entries=tuple(tuple(table.entries[i][j] for j in columns) for i in rows),
    )


def _chunks(
    sizes: _Sizes, groups: Sequence[list[int]], points: float, sep: float
) -> list[list[int]]:
    """Columns by tabular: whole groups where they fit, else equal parts of one."""
    found: list[list[int]] = []
    for group in groups:
        if found and _fits(sizes, [*found[-1], *group], points, sep):
            found[-1] += group
            continue
        parts = 1
        while parts < len(group) and not all(
            _fits(sizes, part, points, sep) for part in equal(group, parts)
        ):
            parts += 1
        found += equal(group, parts)
    return found


def _fits(sizes: _Sizes, columns: Sequence[int], points: float, sep: float) -> bool:
    taken = sum(sizes.columns[j] for j in columns) * points / 1000
    gaps = 2 * sep * (len(sizes.names) + len(columns) - 1)
    return _names(sizes, points) + taken + gaps <= COLUMN


def _names(sizes: _Sizes, points: float) -> float:
    """Points that the names of rows take, broken into lines where they are long."""
    return min(sum(sizes.names) * points / 1000, NAMES * COLUMN)


def _measured(table: Table, levels: Sequence[str]) -> _Sizes:
    cells = row_cells(table, escape.plain)
    heads = titles(table)
    names = [
        max(_width(head), *(_width(row[k]) for row in cells), 0.0) for k, head in enumerate(heads)
    ]
    columns = []
    for j in range(len(table.columns)):
        entries = [
            _width(value(table, i, j, lambda text, rank: text, "±"))
            * (_BOLD if table.entries[i][j].rank == 1 else 1)
            for i in range(len(table.rows))
        ]
        columns.append(max([_width(table.heading(j, levels[-1])), *entries]))
    # A heading above several columns may be wider than they are; the gaps between them are left
    # out of account.
    for depth in range(1, len(levels)):
        for start, n in spans(table, levels[:depth]):
            wide = _width(table.heading(start, levels[depth - 1])) - sum(columns[start : start + n])
            for j in range(start, start + n):
                columns[j] += max(wide, 0.0) / n
    return _Sizes(tuple(names), tuple(columns))


def _width(text: str) -> float:
    return float(sum(_WIDTHS.get(c, 560 if c.islower() else 760) for c in text))


def _tabular(
    table: Table, levels: Sequence[str], sizes: _Sizes, size: str, points: float, sep: float
) -> str:
    """levels: the header's lines, also those on which all columns of a part agree."""

    def mark(text: str, rank: int | None) -> str:
        return {1: f"\\textbf{{{text}}}", 2: f"\\underline{{{text}}}"}.get(rank or 0, text)

    def entry(i: int, j: int) -> str:
        text = value(table, i, j, mark, _PLUS_MINUS).replace("–", "--")
        text = text.replace("†", r"$^\dagger$")
        return text.replace("(-", "($-$") if "(-" in text else text

    heads, columns = len(table.heads), range(len(table.columns))
    wanted = sum(sizes.names) * points / 1000
    taken = sum(_measured(table, levels).columns) * points / 1000
    room = max(_names(sizes, points), COLUMN - taken - 2 * sep * (heads + len(columns) - 1))
    broken = wanted > room
    shape, most = "l" * heads, 12
    if broken:
        # The space between names of several columns is part of their room.
        left = [n / sum(sizes.names) * (room - 2 * sep * (heads - 1)) for n in sizes.names]
        shape = "".join(f"p{{{width:.1f}pt}}" for width in left)
        most = max(3, min(12, int(min(left) / (0.72 * points))))
    lines = [
        rf"{{{size}\setlength{{\tabcolsep}}{{{sep:g}pt}}",
        rf"\begin{{tabular}}{{@{{}}{shape}{'c' * len(columns)}@{{}}}}",
        r"\toprule",
    ]
    empty = " & " * (heads - 1)
    for depth, level in enumerate(levels[:-1]):
        found = spans(table, levels[: depth + 1])
        counts = [
            rf"\multicolumn{{{n}}}{{c}}{{{escape.latex(table.heading(start, level))}}}"
            for start, n in found
        ]
        lines.append(rf"{empty} & {' & '.join(counts)} \\")
        if any(n > 1 for _, n in found):
            first = heads + 1
            rules = [rf"\cmidrule(lr){{{start + first}-{start + n + heads}}}" for start, n in found]
            lines.append(" ".join(rules))
    last = [escape.latex(table.heading(j, levels[-1])) for j in columns]
    # An empty group first: a name that begins with a rule's or a row's argument is a name.
    names = [breakable(title, most) for title in titles(table)]
    lines += [rf"{' & '.join([*names, *last])} \\", r"\midrule"]
    escaped = partial(_in_lines, most=most) if broken else escape.latex
    for i, cells in enumerate(row_cells(table, escaped)):
        if new_block(table, i):
            lines.append(r"\midrule")
        lines.append(rf"{{}}{' & '.join([*cells, *(entry(i, j) for j in columns)])} \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}}"])


def _in_lines(text: str, most: int) -> str:
    return rf"\raggedright {breakable(text, most)}" if text else ""
