"""What must agree between records before their numbers stand side by side."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from vipbench.results.records.record import Record, sha256


class TableError(ValueError):
    """Records that cannot stand in one table; the message says what differs and what to do."""


# Kept out of comparisons of versions: they are settings, or say nothing of how a number was made.
_NO_VERSION = (
    "method",
    "backbone",
    "dataset",
    "metric_revisions",
    "stacked_cells",
    "prediction_hash",
)

_OF_SUPPORT = ("views", "sampler", "validation", "selection", "shots_unit")


def protocol(record: Record) -> dict[str, Any]:
    """The protocol's settings that had a say: at 0 shots there is no support set to draw, augment
    or select on, so that such a record serves every protocol."""
    kept = record.protocol.model_dump()
    if record.cell.shots == 0:
        return {k: v for k, v in kept.items() if k not in _OF_SUPPORT}
    return kept


def settings(record: Record) -> dict[str, Any]:
    """Dotted name -> what must be equal over the seeds of one entry."""
    method = record.part("method")
    found = {
        "method": record.cell.method_name,
        "method.plugin": method.get("plugin", method.get("name")),
        "method.revision": method.get("revision"),
        "symptoms_sha256": record.data.symptoms_sha256 if "symptoms" in record.needs else None,
        **{name: digest for name, digest in texts(record).items() if name != "symptoms"},
        **_flat("hparams", record.hparams),
        **_flat("recipe", record.recipe),
        **_flat("protocol", protocol(record)),
    }
    return found | benchmark(record)


def draw(record: Record) -> dict[str, Any]:
    """Dotted name -> what a support set depends on beside dataset, shots and seed; nothing for a
    record without one."""
    kept = {k: v for k, v in protocol(record).items() if k in ("sampler", "shots_unit")}
    revision = record.part("key_parts").get("sampler.revision")
    return kept if revision is None or not kept else {**kept, "sampler.revision": revision}


def texts(record: Record) -> dict[str, Any]:
    """Name -> digest of each kind of texts that the record's method read, as far as it tells."""
    parts = record.part("key_parts")
    found = {
        "class names and templates": parts.get("texts"),
        "descriptions": parts.get("descriptions"),
    }
    found = {name: digest for name, digest in found.items() if digest is not None}
    return found | ({"symptoms": record.data.symptoms_sha256} if "symptoms" in record.needs else {})


def benchmark(record: Record) -> dict[str, Any]:
    """Dotted name -> what must be equal down a column, for its numbers to be comparable."""
    return {
        "dataset.fingerprint": record.data.fingerprint,
        "class_names": record.data.class_names,
        "test_counts": record.data.test_counts,
        "backbone.fingerprint": record.part("backbone").get("fingerprint"),
    }


def revisions(record: Record, metrics: Sequence[str]) -> dict[str, Any]:
    """Dotted name -> revision of the shown metrics' definitions, as far as the record tells."""
    known = record.part("metric_revisions")
    names = dict.fromkeys(name.partition(":")[0] for name in metrics)
    return {f"metric_revisions.{n}": known[n] for n in names if n in known}


def versions(record: Record) -> dict[str, Any]:
    """What may differ within a table as long as the table says so."""
    found = {k: v for k, v in record.provenance.items() if k not in _NO_VERSION}
    return {k: v for k, v in found.items() if isinstance(v, (str, int, float))}


def require_equal(records: Sequence[Record], many: Sequence[dict[str, Any]], where: str) -> None:
    """Raise TableError, saying what differs, where the records' settings `many` are not equal."""
    changed = differences(many)
    if changed:
        keys = ", ".join(sorted({record.key[:12] for record in records})[:4])
        raise TableError(
            f"{where}: records with different settings cannot share a table: {'; '.join(changed)} "
            f"(records {keys}…). Give the variants labels of their own (in a suite: name: …, "
            f"label: …), or run them into another output folder (--out)"
        )


def differences(many: Sequence[dict[str, Any]]) -> list[str]:
    """`name: value | value` of every name whose values are not all equal."""
    lines = []
    for name in dict.fromkeys(name for one in many for name in one):
        values = dict.fromkeys(_key(one.get(name)) for one in many)
        if len(values) > 1:
            lines.append(f"{name}: {' | '.join(map(_show, values))}")
    return lines


def spread(pairs: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, dict[str, list[str]]]:
    """name -> shown value -> labels, for the names on which the labelled settings differ. A name
    that a label does not have is no difference."""
    found: dict[str, dict[str, list[str]]] = {}
    for label, values in pairs:
        for name, value in values.items():
            labels = found.setdefault(name, {}).setdefault(_key(value), [])
            if label not in labels:
                labels.append(label)
    return {
        name: {_show(key): labels for key, labels in values.items()}
        for name, values in found.items()
        if len(values) > 1
    }


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {
        k: v for name, part in value.items() for k, v in _flat(f"{prefix}.{name}", part).items()
    }


def _key(value: Any) -> str:
    if value is None or isinstance(value, (str, int, float)):
        return _scalar_key(type(value).__name__, value)
    return _json_key(value)


@lru_cache(maxsize=4096)
def _scalar_key(kind: str, value: Any) -> str:
    # The type is there to keep 1, 1.0 and True apart in the cache.
    return _json_key(value)


def _json_key(value: Any) -> str:
    # As JSON, so that 1, 1.0, true and the text "1" stay apart.
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _show(key: str) -> str:
    text = json.loads(key) if key.startswith('"') else ""
    if text:
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            # Without its quotes it cannot be taken for another kind of value.
            key = text
    if len(key) <= 80:
        return key
    return f"{key[:60]}… (SHA-256 {sha256(key)[:12]})"
