"""What the cells of a table did not share: code, support sets, texts, validation images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vipbench.results.records.comparable import draw, spread, texts
from vipbench.results.records.protocol_names import SETTINGS
from vipbench.results.records.record import Record
from vipbench.results.records.rerun_command import again_commands
from vipbench.results.stats.pairing import shot_words
from vipbench.revisions import PRESENT

if TYPE_CHECKING:
    from vipbench.results.records.cells import Cells

OLDER = "§"


def older_words(cells: Cells, mark: str = f"{OLDER}: ") -> list[str]:
    """A sentence, without its full stop, for each kind of rows of older code than others."""
    found: dict[tuple[str, ...], list[str]] = {}
    shown = dict.fromkeys(cell.method for cell in cells.possible())
    for label in shown:
        if label in cells.older:
            found.setdefault(_kind(cells.older[label]), []).append(label)
    sentences = []
    for (whose, what), labels in found.items():
        records = [r for cell in cells.possible() if (r := cells.record_of(cell)) is not None]
        again = _rerun_words([r for r in records if r.cell.method in labels], cells.folder)
        sentences.append(
            f"{mark}{whose} is older than that of other rows ({what}): {and_(labels)}; {again}"
        )
    return sentences


def outdated_words(cells: Cells) -> list[str]:
    """A sentence, without its full stop, for each row of which some records are of older code, and
    for what this vipbench computes otherwise than when records were made."""
    asked = {cell.key: cell.method for cell in cells.possible()}
    found: dict[str, list[Record]] = {}
    for key, record in cells.outdated.items():
        if key in asked:
            found.setdefault(asked[key], []).append(record)
    return [
        f"{label}: {len(records)} record{'s' * (len(records) > 1)} made by older code of "
        f"{_made_by(records[0])} count{'s' * (len(records) == 1)} as not yet run; "
        f"{_rerun_words(records, cells.folder)}"
        for label, records in found.items()
    ] + _earlier_words(cells)


def _earlier_words(cells: Cells) -> list[str]:
    found: dict[str, list[Record]] = {}
    for cell, record in cells.done():
        own = record.part("key_parts")
        changes = [f"{k} {own[k]}, here {v}" for k, v in PRESENT.items() if own.get(k, v) != v]
        if changes and cell.method not in cells.older:
            found.setdefault("; ".join(changes), []).append(record)
    return [
        f"{and_(list(dict.fromkeys(r.cell.method for r in records)))}: made by another version of "
        f"vipbench ({changes}); {_rerun_words(records, cells.folder)}"
        for changes, records in found.items()
    ]


def shared_words(cells: Cells) -> list[str]:
    """A sentence, without its full stop, for each thing that cells on the same dataset saw
    different ones of: support sets, texts, code of the plugin that gives images or features."""
    done = [(cell.method, record) for cell, record in cells.done()]
    sentences = []
    for dataset in dict.fromkeys(record.cell.dataset for _, record in done):
        own = [(label, record) for label, record in done if record.cell.dataset == dataset]
        for name, values in spread((label, draw(record)) for label, record in own).items():
            sentences.append(
                f"Support sets on {dataset} were drawn differently, "
                f"{SETTINGS.get(name, name)}: {by_value(values)}"
            )
        for name, values in spread((label, texts(record)) for label, record in own).items():
            sentences.append(
                f"The {name} of {dataset} differ (SHA-256): {by_value(_shortened_values(values))}"
            )
    for name, values in spread((label, _plugins(record)) for label, record in done).items():
        sentences.append(
            f"The code of {name} differs (SHA-256): {by_value(_shortened_values(values))}"
        )
    return sentences


def short_validation(records: Iterable[Record]) -> str:
    """Where validation sets have fewer images than their policy asks for; "" for nowhere."""
    found: dict[str, dict[int | str, str]] = {}
    units: dict[str, None] = {}
    for record in records:
        shots, asked = record.cell.shots, _validation_images_due(record)
        given = getattr(record.data, "n_val_groups", record.data.n_val)
        if given < asked:
            units[f"{record.protocol.shots_unit}s"] = None
            place = found.setdefault(record.cell.dataset, {})
            place[shots] = f"{given} instead of {asked} {shot_words(shots)}"
    places = [
        f"on {dataset} {', '.join(counts[k] for k in sorted(counts, key=ascending))}"
        for dataset, counts in found.items()
    ]
    if not places:
        return ""
    start = f"Validation sets are smaller than their policy, in {' or '.join(units)} of all classes"
    return f"{start}: {and_(places)}"


def and_(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def by_value(values: Mapping[str, Sequence[str]]) -> str:
    """`value (label, label); value (label)`."""
    return "; ".join(f"{value} ({', '.join(labels)})" for value, labels in values.items())


def _kind(older: Mapping[str, str]) -> tuple[str, ...]:
    code = {name: values for name, values in older.items() if name == "method.code"}
    ours = [values for name, values in older.items() if name not in (*code, "method.revision")]
    ours += [older["method.revision"]] if not code and "method.revision" in older else []
    whose = "the plugin's code and vipbench's" if code and ours else "the plugin's code"
    return whose if code else "vipbench's code", "; ".join([*code.values(), *ours])


def _made_by(record: Record) -> str:
    method = record.provenance.get("method")
    plugin = method.get("plugin") if isinstance(method, dict) else None
    return "vipbench" if plugin in (None, "vipbench") else f"plugin '{plugin}'"


def _rerun_words(records: Sequence[Record], folder: str) -> str:
    commands = [f"`{command}`" for command in again_commands(records, folder)]
    cells = "cell" if len(records) == 1 else "cells"
    return f"{and_(commands)} make{'s' * (len(commands) == 1)} the {cells} again"


def _plugins(record: Record) -> dict[str, Any]:
    """Of the plugins that gave images and features: `dataset plugin 'ward'` -> digest of its file.
    Code of vipbench itself is identified by its revisions."""
    found = {}
    for kind in ("dataset", "backbone"):
        part = record.provenance.get(kind)
        part = part if isinstance(part, dict) else {}
        if part.get("plugin") not in (None, "vipbench") and part.get("file_sha256"):
            found[f"the {kind} plugin '{part['plugin']}'"] = part["file_sha256"]
    return found


def _shortened_values(values: Mapping[str, list[str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for value, labels in values.items():
        found.setdefault("none" if value == "null" else value.strip('"')[:12], []).extend(labels)
    return found


def _validation_images_due(record: Record) -> int:
    """How many validation images the policy asks for; 0 where it names no number."""
    shots, policy = record.cell.shots, record.protocol.validation
    if shots == 0 or policy not in ("k", "min(k,4)") or (shots == "full" and policy == "k"):
        return 0
    each = 4 if isinstance(shots, str) else shots if policy == "k" else min(shots, 4)
    source = record.provenance.get("trained_on")
    names = source.get("class_names") if isinstance(source, dict) else None
    return each * len(names or record.data.class_names)


def ascending(shots: int | str) -> float:
    """The order of shots, "full" last."""
    return float("inf") if isinstance(shots, str) else shots
