"""Confusion matrices and reliability diagrams, a panel a method and dataset."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vipbench.results.figures.style import COLOURS, grid, legend_below, outer, text
from vipbench.results.records.metrics import ECE_BINS, softmax
from vipbench.results.records.predictions import Predictions
from vipbench.results.records.record import Record

MOST_PANELS = 24


@dataclass(frozen=True)
class Panel:
    """One method at one place: its runs, one a seed, with the scores of every test image."""

    title: str
    runs: tuple[tuple[Record, Predictions], ...]


def confusion(panels: Sequence[Panel]) -> Figure:
    """Per panel the share of each class's test images that is predicted as each class, the mean
    over seeds: rows are true classes and add up to 100 %."""
    classes = max(len(panel.runs[0][0].data.class_names) for panel in panels)
    figure, axes = grid(
        len(panels), max(1.9, 0.26 * classes + 0.5), most=2 if classes > 5 else 3, square=True
    )
    image = None
    for axis, panel in zip(axes, panels, strict=True):
        names = panel.runs[0][0].data.class_names
        share = np.mean([shares(p, len(names)) for _, p in panel.runs], 0)
        image = axis.imshow(share * 100, cmap="Blues", vmin=0, vmax=100)
        shown = [text(name, 18) for name in names]
        ticks = range(len(names))
        axis.set_xticks(ticks, shown, rotation=40, ha="right", rotation_mode="anchor")
        axis.set_yticks(ticks, shown)
        axis.set_title(textwrap.fill(text(panel.title, 80), 26))
        for i in ticks:
            for j in ticks:
                if np.isnan(share[i, j]):
                    axis.text(j, i, "–", ha="center", va="center", fontsize=6)
                elif len(names) <= 12:
                    dark = share[i, j] > 0.55
                    axis.text(
                        j,
                        i,
                        f"{share[i, j] * 100:.0f}",
                        ha="center",
                        va="center",
                        fontsize=6,
                        color="white" if dark else "black",
                    )
    assert image is not None
    empty = figure.axes[len(axes) :]
    left, bottom = outer(axes)
    for axis in axes:
        if axis in left:
            axis.set_ylabel("true")
        else:
            axis.tick_params(labelleft=False)
        if axis in bottom:
            axis.set_xlabel("predicted")
        else:
            axis.tick_params(labelbottom=False)
    bar = figure.colorbar(
        image, ax=axes, shrink=min(1, 2.2 / figure.get_size_inches()[1]), aspect=20, pad=0.02
    )
    bar.set_label("share of the true class (%)")
    if empty:
        _even_rows(figure, axes, empty)
    return figure


def _even_rows(figure: Figure, axes: Sequence[Axes], empty: Sequence[Axes]) -> None:
    """Lay the figure out as if the `empty` places of its last row were taken, whose room the
    labels of the panels above then use: else these would push the last row away."""
    place = axes[0].get_subplotspec()
    assert place is not None
    across = place.get_gridspec().ncols
    above = axes[len(axes) - across :][: len(empty)]
    for axis, panel in zip(empty, above, strict=True):
        axis.set_visible(True)
        axis.set(xlim=panel.get_xlim(), ylim=panel.get_ylim(), aspect="equal")
        names = [label.get_text() for label in panel.get_xticklabels()]
        axis.set_xticks(panel.get_xticks(), names, rotation=40, ha="right", rotation_mode="anchor")
        axis.set_xlabel("predicted")
        axis.tick_params(labelleft=False)
        panel.set_xlabel("")
        panel.tick_params(labelbottom=False)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axis, panel in zip(empty, above, strict=True):
        axis.remove()
        panel.set_xlabel("predicted")
        panel.tick_params(labelbottom=True)


def shares(p: Predictions, c: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """(C,C) of each true class the share predicted as each; NaN for a class without images."""
    counts = np.bincount(p.labels * c + p.scores.argmax(1), minlength=c * c).reshape(c, c)
    total = counts.sum(1, keepdims=True)
    return np.where(total > 0, counts / np.maximum(total, 1), np.nan)


def reliability(panels: Sequence[Panel]) -> Figure:
    """Per panel the accuracy of the images whose confidence (max p) falls into each of the ECE's
    bins, all seeds together; a mark's area is the share of the images in its bin."""
    figure, axes = grid(len(panels), 2.5, most=3, square=True)
    for axis, panel in zip(axes, panels, strict=True):
        _reliability(axis, panel)
    handles = [
        Line2D([], [], color="0.45", linestyle=(0, (4, 2)), label="perfectly calibrated"),
        Line2D(
            [],
            [],
            color=COLOURS[0],
            marker="o",
            label="accuracy of a bin; area: share of the images",
        ),
    ]
    left, bottom = outer(axes)
    for axis in axes:
        axis.set_ylabel("accuracy" if axis in left else "")
        axis.set_xlabel("confidence" if axis in bottom else "")
    legend_below(figure, handles)
    return figure


def _reliability(axis: Axes, panel: Panel) -> None:
    confidence = np.concatenate([softmax(p.scores).max(1) for _, p in panel.runs])
    right = np.concatenate([p.scores.argmax(1) == p.labels for _, p in panel.runs])
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    count = np.bincount(bins, minlength=ECE_BINS)
    used = count > 0
    x = np.bincount(bins, confidence, ECE_BINS)[used] / count[used]
    y = np.bincount(bins, right, ECE_BINS)[used] / count[used]
    axis.plot([0, 1], [0, 1], color="0.45", linestyle=(0, (4, 2)), linewidth=0.8)
    axis.vlines(x, x, y, color=COLOURS[1], linewidth=1.0)
    axis.plot(x, y, color=COLOURS[0], linewidth=0.9)
    axis.scatter(
        x,
        y,
        s=6 + 150 * count[used] / len(bins),
        color=COLOURS[0],
        zorder=3,
        edgecolor="white",
        clip_on=False,
        linewidth=0.4,
    )
    ece = np.mean([record.metrics["ece"] for record, _ in panel.runs])
    n, seeds = len(panel.runs[0][1].labels), len(panel.runs)
    legend = f"ECE {100 * ece:.1f} %\n{n} images × {seeds} run{'s' * (seeds != 1)}"
    axis.text(0.04, 0.96, legend, transform=axis.transAxes, va="top", fontsize=6)
    axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axis.set_title(textwrap.fill(text(panel.title, 80), 26))
