"""Critical-difference diagrams."""

from __future__ import annotations

import math

from matplotlib.figure import Figure

from vipbench.results.figures.style import PAGE, text
from vipbench.results.stats import Ranks


def critical_difference(found: Ranks) -> Figure:
    """Average ranks on a line, best on the left; a bar joins methods whose ranks are within one
    critical difference (Demšar 2006)."""
    k = len(found.names)
    low, high = 1, k
    order = sorted(range(k), key=lambda i: found.ranks[i])
    left, right = order[: math.ceil(k / 2)], order[math.ceil(k / 2) :]
    bars = found.cliques()
    depth = 0.55 + 0.32 * len(bars)
    height = depth + 0.42 * max(len(left), len(right))
    figure = Figure(figsize=(PAGE * 0.8, 0.4 * (height + 1.35)), layout="constrained")
    axis = figure.subplots()
    axis.set_axis_off()
    span = high - low
    side = 0.12 * span
    axis.set_xlim(low - side - 0.55 * span, high + side + 0.55 * span)
    axis.set_ylim(-height + 0.1, 1.35)
    axis.plot([low, high], [0, 0], color="black", linewidth=0.9)
    for rank in range(low, high + 1):
        axis.plot([rank, rank], [0, 0.14], color="black", linewidth=0.8)
        axis.text(rank, 0.22, str(rank), ha="center", va="bottom")
    cd = found.critical_difference
    axis.plot([low, low + cd], [0.95, 0.95], color="black", linewidth=1.2, marker="|")
    axis.text(low + cd / 2, 1.02, f"CD = {cd:.2f}", ha="center", va="bottom")
    for names, edge, align in ((left, low - side, "right"), (right[::-1], high + side, "left")):
        for n, i in enumerate(names):
            y = -depth - 0.42 * n
            axis.plot(
                [found.ranks[i], found.ranks[i], edge], [0, y, y], color="0.25", linewidth=0.8
            )
            mean = f"{found.ranks[i]:.2f}"
            name = text(found.names[i], 32)
            words = f"{name}  ({mean})" if align == "right" else f"({mean})  {name}"
            axis.text(
                edge + (-0.02 if align == "right" else 0.02) * span, y, words, ha=align, va="center"
            )
    for n, clique in enumerate(bars):
        y = -0.3 - 0.32 * n
        ends = [found.ranks[clique[0]] - 0.04, found.ranks[clique[-1]] + 0.04]
        axis.plot(ends, [y, y], color="black", linewidth=3, solid_capstyle="round")
    return figure
