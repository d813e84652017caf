"""A table in HTML. No torch here."""

from __future__ import annotations

from html import escape as as_text

from vipbench.results import escape
from vipbench.results.celltext import legend, row_cells, spans, titles, value
from vipbench.results.table import Table


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
