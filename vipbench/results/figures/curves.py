"""A metric against shots."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vipbench.results.figures.style import Look, grid, legend_below, looks, text
from vipbench.results.records.comparable import TableError
from vipbench.results.tables.table import Entry, Shots, Table, metric_scale, metric_title

BAND = {
    "sd": "± sample standard deviation over seeds",
    "ci-seeds": "95 % interval, new support sets",
    "ci-images": "95 % interval, new test images",
    "ci-both": "95 % interval, new support sets and test images",
}


def curves(table: Table) -> Figure:
    """One panel for each dataset and backbone of a `comparison`'s table with one metric: a line a
    method with its interval, and methods without training images as marks at 0. Unfinished entries
    leave a gap. Raises TableError where there is nothing to draw."""
    panels: dict[tuple[str, str], list[int]] = {}
    for j, column in enumerate(table.columns):
        panels.setdefault((str(column.dataset), str(column.backbone)), []).append(j)
    rows = [i for i, row in enumerate(table.rows) if row.kind != "majority"]
    labels = [table.rows[i].label for i in rows]
    if not any(
        table.entries[i][j].mean is not None for i in rows for own in panels.values() for j in own
    ):
        raise TableError("no entry has finished all its seeds, so there are no curves to draw")
    style = looks(labels)
    figure, axes = grid(len(panels), 2.6 if len(panels) == 1 else 2.1)
    backbones = {backbone for _, backbone in panels}
    for axis, ((dataset, backbone), own) in zip(axes, panels.items(), strict=True):
        _panel(axis, table, rows, own, style)
        named = dataset if len(backbones) == 1 else f"{dataset}, {backbone}"
        axis.set_title(text(named, 40))
    metric = table.metrics()[0]
    unit = " (%)" if metric_scale(metric) == 100 else ""
    for k, axis in enumerate(axes):
        if k % 3 == 0:
            axis.set_ylabel(text(metric_title(metric)) + unit)
        axis.set_xlabel("training images per class")
    handles: list[Line2D] = []
    for i in rows:
        row, look = table.rows[i], style[table.rows[i].label]
        at = {
            table.columns[j].shots
            for j in range(len(table.columns))
            if table.entries[i][j].mean is not None
        }
        name = text(row.label, 40) + table.marks(row.label)
        handles.append(
            Line2D(
                [],
                [],
                color=look.colour,
                marker=look.marker,
                label=name,
                linestyle=look.dash if at - {0} else "none",
            )
        )
    legend_below(figure, handles, _spread_shown(table))
    return figure


def _spread_shown(table: Table) -> str:
    bounds = (entry_bounds(table, e) for line in table.entries for e in line)
    caption = f"band: {BAND[table.spread]}" if table.spread in BAND else ""
    return caption if any(b is not None for b in bounds) else ""


def entry_bounds(table: Table, entry: Entry) -> tuple[float, float] | None:
    """The lower and upper end that a figure draws, as the table's spread says."""
    if entry.low is not None and entry.high is not None:
        return entry.low, entry.high
    if table.spread == "sd" and entry.sd is not None and entry.mean is not None:
        return entry.mean - entry.sd, entry.mean + entry.sd
    return None


def _panel(
    axis: Axes, table: Table, rows: Sequence[int], own: Sequence[int], style: dict[str, Look]
) -> None:
    shots = [table.columns[j].shots for j in own]
    place = places([k for k in shots if k is not None])
    scale = metric_scale(table.metrics()[0])
    for i in rows:
        look = style[table.rows[i].label]
        x: list[float] = []
        y: list[float] = []
        low: list[float] = []
        high: list[float] = []
        for j, k in zip(own, shots, strict=True):
            entry = table.entries[i][j]
            if k == 0 or k is None or (entry.state == "blank" and not x):
                continue
            bounds = entry_bounds(table, entry) or (math.nan, math.nan)
            mean = math.nan if entry.mean is None else entry.mean
            x.append(place[k])
            y.append(mean * scale)
            low.append(bounds[0] * scale)
            high.append(bounds[1] * scale)
        axis.plot(x, y, color=look.colour, marker=look.marker, linestyle=look.dash, zorder=3)
        axis.fill_between(x, low, high, color=look.colour, alpha=0.1, linewidth=0, zorder=1)
        for edge in (low, high):
            axis.plot(x, edge, color=look.colour, linestyle=look.dash, linewidth=0.4, alpha=0.6)
        _zero(axis, table, i, [j for j, k in zip(own, shots, strict=True) if k == 0], look, scale)
    axis.set_xticks([place[k] for k in place], [str(k) for k in place])
    axis.grid(axis="y", color="0.9", linewidth=0.5, zorder=0)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _zero(axis: Axes, table: Table, i: int, own: Sequence[int], look: Look, scale: float) -> None:
    for j in own:
        entry = table.entries[i][j]
        if entry.mean is None:
            continue
        y, bounds = entry.mean * scale, entry_bounds(table, entry)
        if bounds is not None:
            axis.plot([0, 0], [b * scale for b in bounds], color=look.colour, linewidth=0.8)
        axis.plot(
            [0],
            [y],
            color=look.colour,
            marker=look.marker,
            linestyle="none",
            zorder=4,
            markersize=5,
        )
        axis.axhline(y, color=look.colour, linestyle=(0, (1, 3)), linewidth=0.6, zorder=1)


def places(shots: Sequence[Shots]) -> dict[Shots, float]:
    """Where each number of shots lies: 0 by itself on the left, then a step for each doubling, the
    full training split by itself on the right."""
    numbers = sorted({k for k in shots if isinstance(k, int) and k > 0})
    found: dict[Shots, float] = {0: 0.0} if 0 in shots else {}
    start = math.log2(numbers[0]) if numbers else 0.0
    for k in numbers:
        found[k] = 1 + math.log2(k) - start
    if "full" in shots:
        found["full"] = max([*found.values(), 0.0]) + 1
    return found
