"""From cells to a figure, its caption and its file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from vipbench.errors import UsageError, unknown
from vipbench.files import replacing
from vipbench.results import stats
from vipbench.results.figures.bars import bars, knowledge_groups, method_groups
from vipbench.results.figures.curves import curves
from vipbench.results.figures.matrices import MOST_PANELS, Panel, confusion, reliability
from vipbench.results.figures.ranks import critical_difference
from vipbench.results.figures.style import styled
from vipbench.results.figures.training import training_curves
from vipbench.results.records.cells import Cells, check_classes, check_comparable
from vipbench.results.records.comparable import TableError
from vipbench.results.records.metrics import ECE_BINS, find_metric, metric_value
from vipbench.results.stats.pairing import Load, Pairing, Where, select, shot_words
from vipbench.results.tables.caption import figure_words
from vipbench.results.tables.differences import OLDER, and_, older_words, outdated_words
from vipbench.results.tables.layout import Layout, lay_out
from vipbench.results.tables.presets import most_shots
from vipbench.results.tables.table import Table, metric_title

KINDS = {
    "fewshot": "a metric against shots, with intervals; methods without training images at 0",
    "confusion": "for each class, how its test images are classified",
    "reliability": "accuracy against confidence",
    "cd": "average ranks over datasets with their critical difference",
    "bars": "a bar per method, with its interval, at the most shots",
    "knowledge": "for each method a bar per kind of knowledge, with its interval",
    "training": "loss, gradient norm, support and validation accuracy by epoch",
}
# The intervals that each kind shows where nothing else is asked for: the first that the runs carry.
AGGREGATES = {
    "fewshot": ("ci-seeds", "none"),
    "bars": ("ci-both", "ci-images"),
    "knowledge": ("ci-both", "ci-images"),
}
SUFFIXES = (".pdf", ".svg", ".png")


def draw(
    kind: str,
    cells: Cells,
    load: Load,
    metric: str = "accuracy",
    aggregate: str | None = None,
    title: str | None = None,
) -> tuple[Figure, str]:
    """A figure of `cells` and its caption, which says what it shows and from how much.

    kind: of KINDS. load: a record's predictions by key. metric: for all but confusion, reliability
    and training. aggregate: the band of fewshot and the interval of bars, of table.SPREADS; None
    takes one of AGGREGATES, or "ci-seeds". Raises UsageError for unknown names, TableError or
    StatsError where the cells cannot carry the figure.
    """
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    if kind not in ("confusion", "reliability", "training"):
        check_classes(cells, (metric,))
    spreads = (aggregate,) if aggregate else AGGREGATES.get(kind, ("ci-seeds",))
    with styled():
        if kind == "fewshot":
            table = _table(cells, load, metric, spreads, title)
            return curves(table), figure_words(table, cells, title, "curves")
        if kind in ("bars", "knowledge"):
            return _bars(kind, cells, load, metric, spreads, title)
        if kind == "training":
            return training_curves(cells), _training_words(cells)
        if kind == "cd":
            return _ranks(cells, load, metric)
        return _panels(kind, cells, load)


def save(figure: Figure, file: str | os.PathLike[str]) -> Path:
    """Write a figure as its name's ending says, whole or not at all. Text stays text in PDF and
    SVG; the file holds no date, user or path, so that equal results give equal files. Raises
    UsageError for another ending, OSError."""
    path = Path(file)
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"'{path}': a figure's file ends in {', '.join(SUFFIXES)}")
    form = path.suffix.lower()[1:]
    metadata = {
        "pdf": {"Creator": "vipbench", "Producer": "vipbench", "CreationDate": None},
        "svg": {"Creator": "vipbench", "Date": None},
        "png": {"Software": "vipbench"},
    }[form]
    with replacing(path, "wb") as out, styled():
        figure.savefig(out, format=form, dpi=300, metadata=metadata)
    return path


def _bars(
    kind: str, cells: Cells, load: Load, metric: str, spreads: Sequence[str], title: str | None
) -> tuple[Figure, str]:
    cells = most_shots(cells)
    groups = knowledge_groups(cells) if kind == "knowledge" else method_groups(cells)
    lines: list[str] = []
    if kind == "knowledge":
        # What class names alone reach, beside what texts in the symptoms' place reach.
        lines = list(
            dict.fromkeys(
                cell.method
                for cell, record in cells.done()
                if cell.shots == 0
                and not (record.apart or record.needs & {"symptoms", "descriptions"})
            )
        )[:2]
        shown = {label for group in groups for label in group.bars.values()}
        cells = select(cells, methods=[*lines, *(m for m in _methods(cells) if m in shown)])
    table = _table(cells, load, metric, spreads, title)
    return bars(table, groups, lines), figure_words(table, cells, title, "bars")


def _table(
    cells: Cells, load: Load, metric: str, spreads: Sequence[str], title: str | None
) -> Table:
    """With the first of the spreads that the cells allow. Raises TableError."""
    layouts = [
        Layout(metrics=(metric,), aggregate=spread, highlight="none", title=title)
        for spread in spreads
    ]
    for layout in layouts[:-1]:
        with suppress(TableError):
            return lay_out(cells, layout, load)
    return lay_out(cells, layouts[-1], load)


def _training_words(cells: Cells) -> str:
    done = cells.done()
    methods = dict.fromkeys(cell.method for cell, record in done if record.history)
    seeds = sorted({cell.seed for cell, record in done if record.history})
    without = dict.fromkeys(cell.method for cell, record in done if not record.history)
    lines = f"seed {''.join(map(str, seeds))}"
    if len(seeds) > 1:
        lines = f"lines: mean over seeds {and_(list(map(str, seeds)))}, bands: lowest to highest"
    words = (
        f"Training of {and_(list(methods))} by epoch; {lines}. Loss, gradient norm and support "
        "accuracy are means over the steps of an epoch."
    )
    left = [name for name in without if name not in methods]
    return words + (f" Without training curves: {and_(left)}." if left else "")


def _methods(cells: Cells) -> list[str]:
    return list(dict.fromkeys(cell.method for cell in cells.possible()))


def _panels(kind: str, cells: Cells, load: Load) -> tuple[Figure, str]:
    cells = most_shots(cells)
    check_comparable(cells, ())
    pairing = Pairing(cells, load)
    methods = _methods(cells)
    found = {(cell.dataset, cell.backbone): None for cell in cells.possible()}
    shots = max(
        (c.shots for c in cells.possible()),
        key=lambda k: float("inf") if k == "full" else int(k),
        default=0,
    )
    panels, n = [], set()
    for dataset, backbone in found:
        for method in methods:
            place = Where(dataset, backbone, shots)
            try:
                runs = pairing.runs(method, place)
            except stats.StatsError:
                continue
            pairs = tuple((r, p) for r in runs.values() if (p := load(r.key)) is not None)
            if pairs:
                n.add(len(pairs))
                named = [_marked(method, cells)]
                named += [dataset] if len({d for d, _ in found}) > 1 else []
                named += [backbone] if len({b for _, b in found}) > 1 else []
                panels.append(Panel(", ".join(named), pairs))
    if not panels:
        raise TableError("no method has finished all its seeds with scores of its test images")
    if len(panels) > MOST_PANELS:
        raise TableError(
            f"{len(panels)} panels do not fit into one figure (at most {MOST_PANELS}): select "
            f"with --methods, --datasets or --backbones"
        )
    datasets = and_(list(dict.fromkeys(d for d, _ in found)))
    run_words = (
        f"n = {' or '.join(map(str, sorted(n)))} seeds, a single run without training images"
    )
    start = f"On {datasets}, {shot_words(shots)} ({run_words}): "
    if kind == "confusion":
        figure, caption = (
            confusion(panels),
            (
                "share (%) of each true class's test images predicted as each class, the mean over "
                "seeds."
            ),
        )
    else:
        figure, caption = (
            reliability(panels),
            (
                f"accuracy of the test images in each of {ECE_BINS} bins of confidence, all seeds "
                "together; orange: the gap to perfect calibration; ECE is the mean over seeds."
            ),
        )
    return figure, start + caption + _code_words(cells)


def _marked(method: str, cells: Cells) -> str:
    return f"{method} {OLDER}" if method in cells.older else method


def _code_words(cells: Cells) -> str:
    return "".join(f" {sentence}." for sentence in (*older_words(cells), *outdated_words(cells)))


def _ranks(cells: Cells, load: Load, metric: str) -> tuple[Figure, str]:
    cells = most_shots(cells)
    check_comparable(cells, (metric,))
    pairing = Pairing(cells, load)
    methods, apart = _comparable_methods(cells)
    places = pairing.places(methods)
    backbones = list(dict.fromkeys(place.backbone for place in places))
    if len(backbones) > 1:
        raise TableError(
            f"ranks over datasets with {and_(backbones)} together would count datasets twice: "
            f"choose one with --backbones"
        )
    values = []
    for place in places:
        runs = [pairing.runs(method, place) for method in methods]
        each = [[metric_value(r.metrics, metric) for r in found.values()] for found in runs]
        values.append([np.mean(np.array(v, dtype=np.float64)) for v in each])
    matrix = np.array(values, dtype=np.float64).reshape(len(places), len(methods))
    if np.isnan(matrix).any():
        raise TableError(
            f"{metric_title(metric)} is undefined for some entries; take another metric"
        )
    names = [_marked(method, cells) for method in methods]
    found = stats.average_ranks(names, matrix, find_metric(metric).higher_better)
    p = "p < 0.001" if found.p < 0.001 else f"p = {found.p:.3f}"
    caption = (
        f"Average ranks by {metric_title(metric)} (1 is best) of {len(methods)} methods over "
        f"{len(places)} datasets, {shot_words(places[0].shots)}, seeds averaged within a dataset "
        f"first. Friedman's test in Iman and Davenport's form: {p}. Methods that a bar joins "
        f"differ by less than the critical difference of Nemenyi's test at 5 %, "
        f"{found.critical_difference:.2f}."
    )
    if apart:
        caption += f" Not ranked here, since they saw more than the others: {and_(apart)}."
    return critical_difference(found), caption + _code_words(cells)


def _comparable_methods(cells: Cells) -> tuple[list[str], list[str]]:
    """The methods that may be ranked together, and those that may not be ranked with them: that see
    all test images, or whose texts saw more labelled images than their shots. Such methods are
    ranked where no others were chosen."""
    every = _methods(cells)
    more = {
        cell.method
        for cell, record in cells.done()
        if record.apart or record.texts_saw_more is not None
    }
    kept = [method for method in every if method not in more]
    return (kept, [m for m in every if m in more]) if kept else (every, [])
