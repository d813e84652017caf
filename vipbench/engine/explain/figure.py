"""Explanations as a figure: the image, the decision, and a bar for every symptom of every class
(Figure 2-II of ViP, arXiv 2409.00341)."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from vipbench.engine.explain.explain import Explained, Explanation
from vipbench.files import replacing
from vipbench.results.figures.style import styled, text

# Classes that are drawn, those with the highest scores; a page has all of them.
MOST_CLASSES = 8
WIDTH, BAR, HEAD = 10.0, 0.155, 0.75  # inches
DECISION, RUNNER_UP, OTHER = "#0072B2", "#D55E00", "#999999"


def save_figure(made: Explanation, out: Path, images: bool, title: str, words: str) -> None:
    """Write `out`: a .pdf with a page an image, or a .png with the images below each other.

    images: whether the images may be in it. words: credit and limits, below. Equal explanations
    give equal files. Raises OSError.
    """
    with replacing(out, "wb") as file, styled():
        if out.suffix.lower() == ".pdf":
            metadata = {"Creator": "vipbench", "Producer": "vipbench", "CreationDate": None}
            with PdfPages(file, metadata=metadata) as pages:
                # With no image there is one page, which says so.
                for some in [[one] for one in made.images] or [[]]:
                    pages.savefig(_figure(made, some, images, title, words))
        else:
            figure = _figure(made, made.images, images, title, words)
            figure.savefig(file, format="png", dpi=150, metadata={"Software": "vipbench"})


def _figure(
    made: Explanation, images: list[Explained], embedded: bool, title: str, words: str
) -> Figure:
    symptoms = made.cell.data.symptoms or ()
    shown = min(MOST_CLASSES, len(symptoms))
    most = max(map(len, symptoms), default=1)
    # Classes stand two abreast, beside the image.
    rows = math.ceil(shown / 2)
    long = any(len(symptom) > 36 for of_class in symptoms for symptom in of_class)
    each = max(2.4, rows * (most * BAR * (1.6 if long else 1) + 0.45)) + HEAD
    ticks = "Black ticks: the symptom's mean cosine over the test set. "
    below = textwrap.wrap(ticks + text(words, 2000), 190)
    foot = 0.14 * (len(below) + 1)
    figure = Figure(figsize=(WIDTH, each * max(1, len(images)) + 0.35 + foot), layout="constrained")
    parts: Any = figure.subfigures(
        2, 1, height_ratios=[each * max(1, len(images)) + 0.35, foot], squeeze=False
    )
    body, footer = parts[0, 0], parts[1, 0]
    body.suptitle(text(title, 120), fontsize=10)
    footer.text(0.01, 0.98, "\n".join(below), fontsize=5.5, va="top")
    if not images:
        body.text(0.5, 0.5, "no image to explain", ha="center")
        return figure
    bands: Any = body.subfigures(len(images), 1, squeeze=False)
    for band, one in zip(bands[:, 0], images, strict=True):
        _band(band, made, one, embedded, rows, shown)
    return figure


def _band(
    band: Any, made: Explanation, one: Explained, embedded: bool, rows: int, shown: int
) -> None:
    names, symptoms = made.cell.data.dataset.class_names, made.cell.data.symptoms or ()
    left, right = band.subfigures(1, 2, width_ratios=[1, 4])
    axis = left.subplots()
    axis.set_axis_off()
    if embedded:
        axis.imshow(np.asarray(one.image.convert("RGB")), interpolation="nearest")
    else:
        axis.text(0.5, 0.5, "image not embedded\n(licence)", ha="center", va="center")
    first, second = one.order[:2]
    title = [text(one.shown, 30)]
    title += [] if one.label is None else [f"true: {text(names[one.label], 30)}"]
    title += [f"decision: {text(names[first], 26)}", f"runner-up: {text(names[second], 26)}"]
    axis.set_title("\n".join(title), fontsize=7)
    grid = right.subplots(rows, 2, squeeze=False, sharex=True)
    drawn = [one.cosines, made.mean_cosines]
    low, high = min(float(np.nanmin(v)) for v in drawn), max(float(np.nanmax(v)) for v in drawn)
    for n, axis in enumerate(grid.ravel()):
        if n >= shown:
            axis.set_axis_off()
            continue
        c = one.order[n]
        colour = (DECISION, RUNNER_UP)[n] if n < 2 else OTHER
        _bars(axis, made, one, c, colour)
        place = ("decision: ", "runner-up: ")[n] if n < 2 else ""
        axis.set_title(f"{place}{text(names[c], 34)} ({one.scores[c]:.2f})", fontsize=7, loc="left")
        axis.set_xlim(min(0.0, low * 1.05), max(0.0, high * 1.05) or 1.0)
        if n + 2 >= shown:
            axis.set_xlabel("cosine (in brackets the weight in its class)", fontsize=6)
            axis.tick_params(labelbottom=True)
    if shown < len(symptoms):
        rest = f"{len(symptoms) - shown} classes with lower scores are not shown"
        right.supxlabel(rest, fontsize=6)


def _bars(axis: Any, made: Explanation, one: Explained, c: int, colour: str) -> None:
    symptoms = (made.cell.data.symptoms or ())[c]
    values = [float(one.cosines[c, k]) for k in range(len(symptoms))]
    weights = [float(made.weights[c, k]) for k in range(len(symptoms))]
    labels = [
        textwrap.fill(f"{text(s, 110)} ({w:.2f})", 44)
        for s, w in zip(symptoms, weights, strict=True)
    ]
    places = range(len(symptoms))
    axis.barh(places, values, height=0.72, color=colour, zorder=2)
    # What the symptom's cosine is on average: a bar that ends beyond it speaks for the image.
    axis.scatter(
        made.mean_cosines[c, : len(symptoms)],
        places,
        marker="|",
        s=28,
        color="black",
        linewidth=0.9,
        zorder=3,
    )
    axis.set_yticks(places, labels, fontsize=6)
    axis.invert_yaxis()
    axis.tick_params(axis="x", labelsize=6)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
