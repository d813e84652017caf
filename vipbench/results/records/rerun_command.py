"""The command that makes a record's cell again."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vipbench.results.records.protocol_names import place_of
from vipbench.results.records.record import Record, dump
from vipbench.runspec.text_sets import row_label
from vipbench.runspec.values import default_label
from vipbench.runspec.yaml import Scalar

# The default results folder of a run.
DEFAULT_FOLDER = "vipbench-results"


def run_command(record: Record, seeds: Iterable[int] = ()) -> str:
    """`vipbench run …` for the record's row at its shots; seeds: by default the record's own.

    A dataset, plugin or file of texts that came from a path has PATH, DIR or FILE in its place.
    """
    c = record.cell
    seed_list = ",".join(map(str, seeds or [c.seed]))
    if c.shots == 0:
        return row_command(record) + (f" --seeds {seed_list}" if c.seed else "")
    return f"{row_command(record)} --shots {c.shots} --seeds {seed_list}"


def row_command(record: Record) -> str:
    """`run_command` before its shots and seeds."""
    words = ["vipbench", "run", "--methods", method_words(record)]
    words += ["--datasets", ",".join(_sources(record)), "--backbones", record.cell.backbone]
    return shlex.join([*words, *_options(record)])


def again_commands(records: Sequence[Record], folder: str = "") -> list[str]:
    """The commands that make the records' cells again in `folder`: rows that were run on the same
    grid share one."""
    rows: dict[tuple[str, tuple[str, ...]], list[Record]] = {}
    for record in records:
        rows.setdefault((method_words(record), _options(record)), []).append(record)
    grids: dict[tuple[str, ...], list[str]] = {}
    for (method, options), own in rows.items():
        grids.setdefault((*_grid(own), *options), []).append(method)
    out = ("--out", folder) if folder and folder != DEFAULT_FOLDER else ()
    return [
        shlex.join(["vipbench", "run", "--methods", ",".join(methods), *grid, *out])
        for grid, methods in grids.items()
    ]


def _grid(records: Sequence[Record]) -> list[str]:
    """The flags for datasets, backbones, shots and seeds of records of one row."""
    cells = [record.cell for record in records]
    datasets = dict.fromkeys(name for record in records for name in _sources(record))
    words = ["--datasets", ",".join(datasets)]
    words += ["--backbones", ",".join(dict.fromkeys(c.backbone for c in cells))]
    shots = sorted({c.shots for c in cells} - {0}, key=lambda k: (k == "full", k))
    if shots:
        words += ["--shots", ",".join(map(str, shots))]
    if shots or any(c.seed for c in cells):
        words += ["--seeds", ",".join(map(str, sorted({c.seed for c in cells})))]
    return words


def _options(record: Record) -> tuple[str, ...]:
    """The flags that are neither method, dataset, backbone, shots nor seeds."""
    c = record.cell
    words: list[str] = []
    place = place_of(record)
    if place:
        words += ["--protocol", _protocol(record, place)]
    if c.shots != 0:
        for name in ("views", "sampler", "validation", "selection"):
            words += [f"--{name}", str(getattr(record.protocol, name))]
        unit = record.protocol.shots_unit
        if unit != "image":
            words += ["--shots-unit", unit]
    words += ["--precision", record.protocol.precision]
    if (features := getattr(record.protocol, "feature_precision", None)) is not None:
        words += ["--feature-precision", features]
    from_files = getattr(record.data, "texts_from_files", None)
    for kind in from_files if isinstance(from_files, list) else ():
        if kind in ("symptoms", "descriptions", "templates"):
            label = text_sets(record).get(kind)
            words += [f"--{kind}", f"{label}=FILE" if label else "FILE"]
    if knowledge(record) != "symptoms":
        words += ["--knowledge", knowledge(record)]
    if is_quick(record):
        words += ["--profile", "quick"]
    if is_file_plugin(record):
        words += ["--plugins-dir", "DIR"]
    return tuple(words)


def method_words(record: Record) -> str:
    """The method as `--methods` takes it: its label, or, where that is somebody's own word, the
    registered name with every hyperparameter."""
    label, name = own_label(record), record.cell.method_name
    if label == name or (label.startswith(f"{name}[") and label.endswith("]")):
        return label
    return default_label(name, scalars(record.hparams))


def scalars(hparams: Mapping[str, Any]) -> dict[str, Scalar]:
    """The hyperparameters that a flag can say."""
    return {k: v for k, v in hparams.items() if v is None or isinstance(v, (bool, int, float, str))}


def knowledge(record: Record) -> str:
    """What stood in the symptoms' place; "symptoms" where they stood there themselves."""
    return str(getattr(record.data, "knowledge", None) or "symptoms")


def text_sets(record: Record) -> dict[str, str]:
    """Kind of texts -> label of the set that the row read, where the run had several."""
    found = getattr(record.data, "text_sets", None)
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def without_knowledge(record: Record) -> str:
    """The row's label without the kind of knowledge."""
    return record.cell.method.removesuffix(f" ({knowledge(record)} knowledge)")


def own_label(record: Record) -> str:
    """The row's label, as the run was asked for it: also without those of sets of texts."""
    return without_knowledge(record).removesuffix(row_label("", text_sets(record)))


def is_quick(record: Record) -> bool:
    """Whether the run's profile was `quick`, as far as it changed the row."""
    return any(note.startswith("profile quick") for note in record.notes)


def is_file_plugin(record: Record) -> bool:
    """Whether the method came from a single file in a --plugins-dir."""
    method = record.provenance.get("method")
    if not isinstance(method, dict):
        return False
    return method.get("plugin") != "vipbench" and method.get("version") is None


def _sources(record: Record) -> list[str]:
    """The dataset of the record, after that which was trained on where it is another."""
    source = place_of(record).get("source_given")
    return [source, _source(record)] if isinstance(source, str) else [_source(record)]


def _protocol(record: Record, place: Mapping[str, Any]) -> str:
    """What --protocol takes."""
    name = str(place["name"])
    if not place.get("classes"):
        return name
    return dump({"name": name, "classes": {_source(record): place["classes"]}})


def _source(record: Record) -> str:
    dataset = record.provenance.get("dataset")
    source = dataset.get("source") if isinstance(dataset, dict) else None
    return source if isinstance(source, str) and source else record.cell.dataset
