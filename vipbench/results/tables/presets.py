"""The shapes of a paper's tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from vipbench.errors import unknown
from vipbench.results.records.cells import Cells
from vipbench.results.records.comparable import TableError
from vipbench.results.records.protocol_names import split_part, targets_name
from vipbench.results.records.record import Record
from vipbench.results.records.rerun_command import knowledge, without_knowledge
from vipbench.results.stats.pairing import select
from vipbench.results.tables.layout import Layout, base_to_new

PRESETS = {
    "comparison": "a row per method, columns for metrics within datasets, at the most shots",
    "ablation": "a row per variant of one method, a column per hyperparameter that varies",
    "fewshot": "a row per method, a column per shots; a block per dataset, and their average",
    "base-to-new": "a row per method; columns for base, new and their harmonic mean",
    "transfer": "a row per method; columns for the source, its targets and their average",
    "knowledge": "a row per kind of text (class names, symptoms, other texts), with its gain",
}


def preset(name: str, cells: Cells, layout: Layout, given: Sequence[str]) -> tuple[Cells, Layout]:
    """The cells and the layout of a preset, on top of `layout`; its fields in `given` were asked
    for and stay. Raises UsageError for an unknown preset, TableError where cells do not fit it."""
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    several = len({cell.backbone for cell in cells.planned}) > 1
    made = {
        "comparison": _comparison,
        "ablation": _ablation,
        "fewshot": _fewshot,
        "base-to-new": _base_to_new,
        "transfer": _transfer,
    }.get(name, _knowledge)
    cells, found = made(cells, layout)
    if several and "backbone" not in (*found.rows, *found.cols):
        found = replace(found, rows=("backbone", *found.rows))
    return cells, replace(found, **{field: getattr(layout, field) for field in given})


def most_shots(cells: Cells) -> Cells:
    """The full training split where all was run on it, else the most shots; 0 shots besides."""
    shots = {cell.shots for cell in cells.possible()} - {0}
    if len(shots) < 2:
        return cells
    most = max(shots, key=lambda k: float("inf") if isinstance(k, str) else k)
    return select(cells, shots=[most])


def _comparison(cells: Cells, layout: Layout) -> tuple[Cells, Layout]:
    return most_shots(cells), replace(layout, rows=("method",), cols=("dataset", "metric"))


def _base_to_new(cells: Cells, layout: Layout) -> tuple[Cells, Layout]:
    """Table 3 of CoCoOp: datasets below each other, at the most shots."""
    names = dict.fromkeys(split_part(cell.dataset)[0] for cell in cells.planned)
    if not base_to_new(cells):
        raise TableError(
            "a table of base and new classes needs a run under --protocol base-to-new alone; "
            "--datasets chooses its parts"
        )
    rows = ("dataset", "method") if len(names) > 1 else ("method",)
    return most_shots(cells), replace(
        layout, rows=rows, cols=("part",), metrics=layout.metrics[:1], average=len(names) > 1
    )


def _transfer(cells: Cells, layout: Layout) -> tuple[Cells, Layout]:
    """Table 4 of CoCoOp: the source and its targets beside each other, at the most shots."""
    if all(targets_name(cell.dataset) is None for cell in cells.planned):
        raise TableError(
            "a table of transfers needs a run under --protocol cross-dataset or domain-shift"
        )
    return most_shots(cells), replace(
        layout, rows=("method",), cols=("dataset",), metrics=layout.metrics[:1]
    )


def _fewshot(cells: Cells, layout: Layout) -> tuple[Cells, Layout]:
    several = len({cell.dataset for cell in cells.planned}) > 1
    rows = ("dataset", "method") if several else ("method",)
    return cells, replace(
        layout, rows=rows, cols=("shots",), metrics=layout.metrics[:1], average=several
    )


def _ablation(cells: Cells, layout: Layout) -> tuple[Cells, Layout]:
    variants: dict[str, dict[str, Record]] = {}
    for cell, record in cells.done():
        variants.setdefault(record.cell.method_name, {}).setdefault(cell.method, record)
    name = max(variants, key=lambda n: len(variants[n]), default="")
    own = variants.get(name, {})
    if len(own) < 2:
        raise TableError(
            "an ablation needs two or more variants of one method, such as "
            "--methods 'vip,vip[context=off]'"
        )
    hparams_of = {
        label: {k: json.dumps(v) for k, v in record.hparams.items()}
        for label, record in own.items()
    }
    names = dict.fromkeys(key for hparams in hparams_of.values() for key in hparams)
    varied = [k for k in names if len({hparams.get(k) for hparams in hparams_of.values()}) > 1]
    if not varied:
        varied = ["method"]
        rows: dict[str, tuple[str, ...]] = {label: (label,) for label in hparams_of}
    else:
        rows = {label: tuple(_shown(h.get(k)) for k in varied) for label, h in hparams_of.items()}
        if len(set(rows.values())) < len(rows):
            rows = {label: (label, *cells_) for label, cells_ in rows.items()}
            varied = [name, *varied]
    kept = most_shots(select(cells, methods=list(own)))
    return kept, replace(
        layout, rows=("method",), cols=("dataset", "metric"), heads=tuple(varied), cells=rows
    )


def _knowledge(cells: Cells, layout: Layout) -> tuple[Cells, Layout]:
    """Figures 2-I and 3 of ViP: class names against symptoms, and symptoms against other texts."""
    texts_of: dict[str, tuple[str, str]] = {}
    varied = {
        without_knowledge(record) for _, record in cells.done() if knowledge(record) != "symptoms"
    }
    trained: set[str] = set()
    for cell, record in cells.done():
        # What a trained method owes to its texts shows beside the same method on other texts only.
        if "symptoms" in record.needs and (cell.shots == 0 or without_knowledge(record) in varied):
            texts_of.setdefault(cell.method, (knowledge(record), without_knowledge(record)))
            trained |= {cell.method} if cell.shots != 0 else set()
        elif cell.shots == 0 and "symptoms" not in record.needs:
            texts_of.setdefault(cell.method, ("class names", cell.method))
    if len({text for text, _ in texts_of.values()}) < 2:
        raise TableError(
            "a table of knowledge needs rows that differ in it: methods without training images "
            "on class names and on symptoms (--methods zero-shot,symptoms-mean), or rows of "
            "--knowledge"
        )
    names = next((m for m, (text, _) in texts_of.items() if text == "class names"), None)
    proper = {label: m for m, (text, label) in texts_of.items() if text == "symptoms"}
    bases = {}
    for method, (text, label) in texts_of.items():
        base = names if text == "symptoms" else proper.get(label)
        compared = text != "class names" and not (text == "symptoms" and method in trained)
        if base is not None and compared:
            bases[method] = base
    rows = dict(sorted(texts_of.items(), key=lambda item: item[1][0] != "class names"))
    own = select(cells, methods=list(rows))
    order = {method: n for n, method in enumerate(rows)}
    kept = replace(own, planned=tuple(sorted(own.planned, key=lambda c: order[c.method])))
    return most_shots(kept) if trained else kept, replace(
        layout,
        rows=("method",),
        cols=("dataset", "metric"),
        heads=("knowledge", "method"),
        cells=rows,
        bases=bases,
    )


def _shown(value: str | None) -> str:
    """A hyperparameter as flags give it."""
    known = {None: "–", "null": "default", "true": "on", "false": "off"}
    if value in known:
        return known[value]
    assert value is not None
    return str(json.loads(value)) if value.startswith('"') else value
