"""Training curves: what the records hold of each epoch."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vipbench.results.figures.style import Look, grid, legend_below, looks, text
from vipbench.results.records.cells import Cells
from vipbench.results.records.comparable import TableError
from vipbench.results.records.record import Record

# The fields of an epoch in a record's history, as shown, and what they are multiplied with.
SHOWN = {
    "loss": ("training loss", 1.0),
    "gradient_norm": ("gradient norm", 1.0),
    "support_accuracy": ("support accuracy (%)", 100.0),
    "val_accuracy": ("validation accuracy (%)", 100.0),
}
Place = tuple[str, str, str]


def training_curves(cells: Cells) -> Figure:
    """For each dataset, backbone and number of shots a row of panels, one for each of SHOWN that
    any record holds: a line per method, the mean over its seeds, in a band from the lowest to the
    highest. Raises TableError where no record has a history."""
    rows: dict[Place, dict[str, list[Record]]] = {}
    for cell, record in cells.done():
        if record.history:
            place = (cell.dataset, cell.backbone, str(cell.shots))
            rows.setdefault(place, {}).setdefault(cell.method, []).append(record)
    kinds = [
        kind
        for kind in SHOWN
        if any(_points(own, kind) for methods in rows.values() for own in methods.values())
    ]
    if not kinds:
        raise TableError(
            "no record has training curves: the methods that ran are training-free or have a "
            "training loop of their own"
        )
    style = looks(list(dict.fromkeys(m for methods in rows.values() for m in methods)))
    figure, axes = grid(len(rows) * len(kinds), 1.8, most=len(kinds))
    for number, (place, methods) in enumerate(rows.items()):
        for column, kind in enumerate(kinds):
            axis = axes[number * len(kinds) + column]
            for method, records in methods.items():
                _line(axis, _points(records, kind), style[method], SHOWN[kind][1])
            axis.set_xlabel("epoch")
            axis.set_ylabel(SHOWN[kind][0])
            axis.set_title(text(_title(place, list(rows)), 40) if column == 0 else "", loc="left")
    handles = [
        Line2D([], [], color=look.colour, linestyle=look.dash, label=text(name, 40))
        for name, look in style.items()
    ]
    legend_below(figure, handles, "mean over seeds; band: lowest to highest")
    return figure


def _points(records: Sequence[Record], kind: str) -> dict[float, list[float]]:
    """Epoch, counted from 1 -> the values of the records that have one there."""
    found: dict[float, list[float]] = {}
    for record in records:
        for entry in record.history:
            if (value := entry.get(kind)) is not None:
                found.setdefault(entry["epoch"] + 1, []).append(value)
    return dict(sorted(found.items()))


def _line(axis: Axes, points: dict[float, list[float]], look: Look, scale: float) -> None:
    if not points:
        return
    epochs = list(points)
    mean = [scale * sum(values) / len(values) for values in points.values()]
    marker = look.marker if len(epochs) == 1 else ""
    axis.plot(epochs, mean, color=look.colour, linestyle=look.dash, marker=marker)
    if any(len(values) > 1 for values in points.values()):
        low = [scale * min(values) for values in points.values()]
        high = [scale * max(values) for values in points.values()]
        axis.fill_between(epochs, low, high, color=look.colour, alpha=0.15, linewidth=0)


def _title(place: Place, every: Sequence[Place]) -> str:
    dataset, backbone, shots = place
    words = [dataset]
    words += [backbone] if len({p[1] for p in every}) > 1 else []
    words.append("full training split" if shots == "full" else f"{shots} per class")
    return ", ".join(words)
