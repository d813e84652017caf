"""A table in LaTeX. No torch here."""

from __future__ import annotations

from vipbench.results import escape
from vipbench.results.celltext import legend, new_block, row_cells, spans, titles, value
from vipbench.results.table import Table


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
        told = [
            rf"\multicolumn{{{size}}}{{c}}{{{escape.latex(table.heading(start, level))}}}"
            for start, size in found
        ]
        lines.append(rf"{empty} & {' & '.join(told)} \\")
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
