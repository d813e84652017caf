"""What the formats of a table share: the text of an entry, names of rows, groups of columns."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

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
    text = f"{best}: best of each column" + (f"; {second}: second best" if 2 in ranks else "")
    return [f"{text}, as displayed; equal numbers share a rank."]


def spans(table: Table, levels: Sequence[str]) -> list[tuple[int, int]]:
    """(first column, how many) of neighbours that agree on all of `levels`."""
    found, start = [], 0
    keys = [tuple(table.heading(j, level) for level in levels) for j in range(len(table.columns))]
    for _, group in itertools.groupby(keys):
        size = len(list(group))
        found.append((start, size))
        start += size
    return found


def equal(columns: Sequence[int], parts: int) -> list[list[int]]:
    """Neighbouring columns in at most `parts` parts of one size, the last maybe smaller."""
    size = -(-len(columns) // parts)
    return [list(columns[i : i + size]) for i in range(0, len(columns), size)]
