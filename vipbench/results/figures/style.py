"""What all figures share: sizes, colours that colour-blind readers can tell apart, text.

Every line also has a marker and a dash pattern of its own, so that a figure can be read in grey. A
figure is made as an object, never through pyplot, whose figures are global state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

from vipbench.results.tables import escape

# Widths of one and of two columns of a paper, in inches.
COLUMN, PAGE = 3.4, 7.0
# Okabe and Ito's colours, without yellow, which is too light on paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (1.5, 1)),
    (0, (5, 1, 1.5, 1)),
    (0, (3, 1, 1, 1, 1, 1)),
)
# Any: matplotlib names every one of its settings in the type.
RC: Any = {
    # TrueType in PDF and text in SVG: a journal, and a reader, can select and edit it.
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "vipbench",
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7,
    "axes.linewidth": 0.6,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "figure.dpi": 100,
    "text.usetex": False,
    # A dollar sign in a name is no mathematics.
    "text.parse_math": False,
}


@contextmanager
def styled() -> Iterator[None]:
    """In the block, matplotlib has RC and otherwise its own defaults: a matplotlibrc, of which the
    first is that of the working directory, changes no figure."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RC)
        yield


class Look(NamedTuple):
    """How one method is drawn, in every panel."""

    colour: str
    marker: str
    dash: Any


def looks(names: Sequence[str]) -> dict[str, Look]:
    """A look for each name; the first 7 differ in everything, any 70 in something."""
    return {
        name: Look(COLOURS[i % 7], MARKERS[i % 10], DASHES[i % 5]) for i, name in enumerate(names)
    }


def text(words: str, longest: int = 60) -> str:
    """Text as matplotlib is to show it: no control character, no glyph that the font lacks, not
    too long."""
    known = _glyphs()
    shown = "".join(
        c if ord(c) in known else f"(U+{ord(c):04X})" for c in escape.plain(words).strip()
    )
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def grid(
    panels: int, height: float, most: int = 3, square: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of `panels` axes, `height` inches each, in rows of up to `most`: one as wide as a
    column, more as wide as a page. square: the axes have a fixed shape."""
    across = min(panels, most)
    down = math.ceil(panels / across)
    figure = Figure(
        figsize=(COLUMN if panels == 1 else PAGE, height * down),
        layout="compressed" if square else "constrained",
    )
    axes = np.atleast_1d(figure.subplots(down, across, squeeze=False)).ravel()
    for extra in axes[panels:]:
        extra.set_visible(False)
    return figure, list(axes[:panels])


def legend_below(figure: Figure, handles: Sequence[Any], title: str = "") -> None:
    """One legend for all panels, in room of its own below them."""
    width, height = figure.get_size_inches()
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), int(width / (0.5 + 0.056 * longest))))
    lines = math.ceil(len(handles) / columns) + bool(title)
    figure.set_size_inches(width, height + 0.1 + 0.155 * lines)
    figure.legend(
        handles=list(handles),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        title=title or None,
        title_fontsize=6.5,
        handlelength=3,
    )


def outer(axes: Sequence[Axes]) -> tuple[list[Axes], list[Axes]]:
    """The axes on the left edge of a `grid`, and those with none below them."""
    places = [axis.get_subplotspec() for axis in axes]
    left, bottom, last = [], [], {}
    for axis, place in zip(axes, places, strict=True):
        assert place is not None
        if place.colspan.start == 0:
            left.append(axis)
        last[place.colspan.start] = axis
    bottom = list(last.values())
    return left, bottom


@lru_cache
def _glyphs() -> frozenset[int]:
    return frozenset(FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap())
