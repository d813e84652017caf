"""Which code made a record, and which records are of older code than others.

Code is identified by parts of a cell's key: the digest of a plugin's files, and the revisions that
vipbench raises when its own numbers change. A row is of one code: that of its record made last. Its
other records count as not yet run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vipbench.results.records.plan import PlannedCell
from vipbench.results.records.record import Record

_END = (".revision", ".code")
# What all cells of a row share; other code depends on the dataset or the backbone.
_OF_THE_ROW = ("method.", "engine.", "sampler.")
# What every cell has: a record that lacks one is older than the part.
_OF_ALL = ("reader.revision", "features.revision")
Scope = tuple[str, ...]


def code(record: Record) -> dict[str, Any]:
    """Dotted name -> which code made the record's number."""
    method, parts = record.provenance.get("method"), record.provenance.get("key_parts")
    method, parts = (p if isinstance(p, dict) else {} for p in (method, parts))
    found = {name: value for name, value in parts.items() if name.endswith(_END)}
    if parts:
        found = dict.fromkeys(_OF_ALL) | found
    found.setdefault("method.revision", method.get("revision"))
    if "method.code" not in found:
        # Code of vipbench itself is identified by its revisions.
        own = method.get("plugin") == "vipbench"
        found["method.code"] = None if own else method.get("file_sha256")
    return found


def outdated(records: Sequence[Record], cells: Iterable[PlannedCell]) -> dict[str, Record]:
    """key -> record, of every record of other code than the one made last in its row. cells: the
    planned ones, which alone say what a row's code is now."""
    newest: dict[Scope, dict[str, Any]] = {}
    for record in _by_age(records, cells):
        newest.update(_parts(record))
    return {
        record.key: record
        for record in records
        if any(scope in newest and _differ(own, newest[scope]) for scope, own in _parts(record))
    }


def superseded(records: Sequence[Record], cells: Iterable[PlannedCell]) -> frozenset[str]:
    """The keys of records that no table shows any more: the plan asks for the same cell under
    other settings, or the row is of other code by now."""
    cells = list(cells)
    planned = {cell.slot: cell.key for cell in cells} or {r.slot: r.key for r in records}
    earlier = {r.key for r in records if planned.get(r.slot, r.key) != r.key}
    return frozenset(earlier | outdated(records, cells).keys())


def older(records: Sequence[Record], cells: Iterable[PlannedCell]) -> dict[str, dict[str, str]]:
    """Row's label -> name of its code -> what is older, of rows made whole by other code than
    the last record made: of the same plugin's file, or of the same parts of vipbench."""
    cells = list(cells)
    last = newest(records, cells)
    found = ((record.cell.method, older_parts(record, last)) for record in _by_age(records, cells))
    return {label: parts for label, parts in found if parts}


def newest(records: Iterable[Record], cells: Iterable[PlannedCell]) -> dict[Scope, Any]:
    """Whose code -> what it was when the last of its records was made."""
    return {s: value for r in _by_age(records, cells) for s, _, value in _owners(r)}


def older_parts(record: Record, last: Mapping[Scope, Any]) -> dict[str, str]:
    """Name of the code -> what is older in words, of what the record has other than `newest`."""
    return {
        name: _version_words(record, name, value, last[scope])
        for scope, name, value in _owners(record)
        if last.get(scope, value) != value
    }


def _by_age(records: Iterable[Record], cells: Iterable[PlannedCell]) -> list[Record]:
    """The planned records (without a plan all), the one made last at the end: by the run that asked
    for them, for the code of an earlier run may be that of the last one again."""
    runs = {cell.key: cell.run for cell in cells}
    known = [r for r in records if not runs or r.key in runs]
    return sorted(known, key=lambda r: (runs.get(r.key, 1), r.created))


def _parts(record: Record) -> Iterator[tuple[Scope, dict[str, Any]]]:
    """The code of the record's row, and that of its row on this dataset and backbone."""
    c, every = record.cell, code(record)
    yield (c.method,), {k: v for k, v in every.items() if k.startswith(_OF_THE_ROW)}
    place = {k: v for k, v in every.items() if not k.startswith(_OF_THE_ROW)}
    if place:
        yield (c.method, c.dataset, c.backbone), place


def _differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    names = one.keys() | other.keys()
    if not ("engine.revision" in one and "engine.revision" in other) and "method.code" in one:
        # A record that does not tell of what its key was made tells of the method alone.
        names = one.keys() & other.keys()
    return any(one.get(name) != other.get(name) for name in names)


def _owners(record: Record) -> Iterator[tuple[Scope, str, Any]]:
    """(whose code it is, its name, its value), of each part of a record's code."""
    c, method = record.cell, record.provenance.get("method")
    method = method if isinstance(method, dict) else {}
    plugin = (str(method.get("plugin")), str(method.get("file")))
    for name, value in code(record).items():
        if name == "method.code":
            yield (name, *plugin), name, value
        elif name == "method.revision":
            yield (name, *plugin, c.method_name), name, value
        elif name.startswith(_OF_THE_ROW):
            yield (name,), name, value
        else:
            yield (name, c.dataset, c.backbone), name, value


def _version_words(record: Record, name: str, value: Any, now: Any) -> str:
    if name != "method.code":
        return f"{name} {value or 'unknown'}, now {now}"
    method = record.provenance["method"]
    file = f", file {method['file']}" if method.get("file") else ""
    return f"plugin '{method.get('plugin')}'{file}"
