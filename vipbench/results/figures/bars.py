"""Bars with intervals: methods side by side, and kinds of knowledge side by side (Figures 2-I and 3
of ViP, arXiv 2409.00341).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from vipbench.results.figures.curves import BAND, entry_bounds
from vipbench.results.figures.style import COLOURS, grid, legend_below, text
from vipbench.results.records.cells import Cells
from vipbench.results.records.comparable import TableError
from vipbench.results.records.rerun_command import knowledge, without_knowledge
from vipbench.results.tables.table import Entry, Table, metric_scale, metric_title
from vipbench.runspec.run import KNOWLEDGE

# Fillings that stay apart in grey, from solid to empty.
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "++++", "----")
LONGEST_NAME = 28
WIDTH = 0.8
# Behind numbers, which lines may cross.
PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.4}


@dataclass(frozen=True)
class Group:
    """Bars that stand together: kind -> label of the row whose entry it is."""

    name: str
    bars: Mapping[str, str]


def method_groups(cells: Cells) -> list[Group]:
    """One bar a method, each a group of its own."""
    methods = dict.fromkeys(cell.method for cell in cells.possible())
    return [Group(method, {"": method}) for method in methods]


def knowledge_groups(cells: Cells) -> list[Group]:
    """One group for each method that reads symptoms, a bar in it for each kind of knowledge that
    stood in their place. Raises TableError where nothing but the symptoms did."""
    found: dict[str, dict[str, str]] = {}
    for cell, record in cells.done():
        if "symptoms" in record.needs:
            found.setdefault(without_knowledge(record), {})[knowledge(record)] = cell.method
    if not any(len(bars) > 1 for bars in found.values()):
        raise TableError(
            "a figure of knowledge needs rows that differ in it: run the methods with "
            "--knowledge symptoms,out-of-domain,useless,incorrect"
        )
    order = {kind: n for n, kind in enumerate(KNOWLEDGE)}
    return [
        Group(label, {k: bars[k] for k in sorted(bars, key=lambda k: order.get(k, len(order)))})
        for label, bars in found.items()
        if len(bars) > 1
    ]


def bars(table: Table, groups: Sequence[Group], lines: Sequence[str] = ()) -> Figure:
    """One panel for each dataset and backbone of a `comparison`'s table with one metric and one
    number of shots besides 0: a bar for each of `groups`' rows, with its interval and value.

    lines: rows that are drawn as horizontal lines through the panel, besides the majority row.
    Raises TableError where there is nothing to draw.
    """
    panels: dict[tuple[str, str], list[int]] = {}
    for j, column in enumerate(table.columns):
        panels.setdefault((str(column.dataset), str(column.backbone)), []).append(j)
    kinds = list(dict.fromkeys(kind for group in groups for kind in group.bars))
    found = {
        place: {row.label: _entry_in_panel(table, i, own) for i, row in enumerate(table.rows)}
        for place, own in panels.items()
    }
    shown = {label for group in groups for label in group.bars.values()}
    if not any(e.mean is not None for at in found.values() for k, e in at.items() if k in shown):
        raise TableError("no entry has finished all its seeds, so there are no bars to draw")
    wide = len(panels) == 1 and len(groups) * len(kinds) > 8
    figure, axes = grid(len(panels), 2.3, most=2)
    if wide:
        figure.set_size_inches(7.0, figure.get_size_inches()[1])
    backbones = {backbone for _, backbone in panels}
    majority = [row.label for row in table.rows if row.kind == "majority"]
    for axis, ((dataset, backbone), at) in zip(axes, found.items(), strict=True):
        inches = figure.get_size_inches()[0] / min(2, len(panels))
        _panel(axis, table, groups, kinds, at, [*lines, *majority], inches)
        axis.set_title(text(dataset if len(backbones) == 1 else f"{dataset}, {backbone}", 40))
    metric = table.metrics()[0]
    unit = " (%)" if metric_scale(metric) == 100 else ""
    for axis in axes[:: min(2, len(axes))]:
        axis.set_ylabel(text(metric_title(metric)) + unit)
    marked = [f"{label}{table.marks(label)}" for label in (*lines, *majority)]
    legend_below(figure, _handles(kinds, marked), _interval_words(table))
    return figure


def _entry_in_panel(table: Table, i: int, own: Sequence[int]) -> Entry:
    """A row's entry in a panel: with training images where it has any."""
    entries = [table.entries[i][j] for j in own if table.entries[i][j].state != "blank"]
    return entries[-1] if entries else Entry("blank")


def _panel(
    axis: Axes,
    table: Table,
    groups: Sequence[Group],
    kinds: Sequence[str],
    at: Mapping[str, Entry],
    lines: Sequence[str],
    inches: float,
) -> None:
    scale, width = metric_scale(table.metrics()[0]), WIDTH / len(kinds)
    top = 0.0
    for g, group in enumerate(groups):
        for kind, label in group.bars.items():
            k = kinds.index(kind)
            entry = at[label]
            x = g + (k - (len(kinds) - 1) / 2) * width
            if entry.mean is None:
                axis.text(x, 0, "–", ha="center", va="bottom")
                continue
            height = entry.mean * scale
            axis.bar(
                x,
                height,
                width * 0.92,
                facecolor=_lightened(COLOURS[k % len(COLOURS)]),
                edgecolor=COLOURS[k % len(COLOURS)],
                hatch=HATCHES[k % len(HATCHES)],
                linewidth=0.8,
                zorder=2,
            )
            end = height
            bounds = entry_bounds(table, entry)
            if bounds is not None:
                low, high = (b * scale for b in bounds)
                axis.plot(
                    [x, x],
                    [low, high],
                    color="black",
                    linewidth=0.9,
                    zorder=3,
                    marker="_",
                    markersize=4,
                )
                end = max(high, height)
            words = f"{height:.{table.decimals}f}" + ("" if entry.saw is None else "†")
            # Where a group has several rows its name cannot be marked.
            words += "§" if kind and label in table.older else ""
            axis.annotate(
                words,
                (x, end),
                (0, 1.5),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=5.5,
                bbox=PAPER,
                zorder=2.5,
            )
            top = max(top, end)
    for n, label in enumerate(lines):
        value = at[label].mean
        if value is not None:
            axis.axhline(
                value * scale, color="0.25", linestyle=_dash_pattern(n), linewidth=0.9, zorder=1
            )
            top = max(top, value * scale)
    names = [text(group.name, LONGEST_NAME) for group in groups]
    if kinds == [""]:
        marks = [table.marks(next(iter(group.bars.values()))) for group in groups]
        names = [f"{name}{mark}" for name, mark in zip(names, marks, strict=True)]
    slanted = max(map(len, names)) * 0.06 > (inches - 0.6) / len(groups)
    axis.set_xticks(
        range(len(groups)),
        names,
        rotation=30 if slanted else 0,
        ha="right" if slanted else "center",
        rotation_mode="anchor",
    )
    axis.set_xlim(-0.6, len(groups) - 0.4)
    # Bars start at 0: their lengths are what is compared.
    axis.set_ylim(0, top * 1.1 if top else 1)
    axis.grid(axis="y", color="0.9", linewidth=0.5, zorder=0)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _handles(kinds: Sequence[str], lines: Sequence[str]) -> list[Patch | Line2D]:
    found: list[Patch | Line2D] = [
        Patch(
            facecolor=_lightened(COLOURS[k % len(COLOURS)]),
            edgecolor=COLOURS[k % len(COLOURS)],
            hatch=HATCHES[k % len(HATCHES)],
            label=text(f"{kind} knowledge" if kind != "symptoms" else "symptoms (correct)"),
        )
        for k, kind in enumerate(kinds)
        if kind
    ]
    found += [
        Line2D(
            [], [], color="0.25", linestyle=_dash_pattern(n), linewidth=0.9, label=text(label, 40)
        )
        for n, label in enumerate(lines)
    ]
    return found


def _dash_pattern(n: int) -> tuple[int, tuple[float, ...]]:
    return (0, ((5, 2), (1, 1.5), (6, 1.5, 1, 1.5), (3, 1, 3, 1))[n % 4])


def _lightened(colour: str) -> tuple[float, float, float]:
    """The colour with much white: hatches and numbers can be read on it."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return (0.45 * red + 0.55, 0.45 * green + 0.55, 0.45 * blue + 0.55)


def _interval_words(table: Table) -> str:
    bounds = (entry_bounds(table, e) for line in table.entries for e in line)
    if table.spread not in BAND or all(b is None for b in bounds):
        return ""
    # Nothing trained: there is no support set to draw anew.
    seedless = table.spread == "ci-both" and all(c.shots == 0 for c in table.columns)
    return f"black: {BAND['ci-images' if seedless else table.spread]}"
