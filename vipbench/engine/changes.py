"""Which planned cells are done, and what changed where another result is in their place.

No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from vipbench.engine.outcome import PlannedCell
from vipbench.results import Record
from vipbench.results.plan import Slot
from vipbench.results.store import FILE, Store

NOT_AGAIN = "failed before, not tried again"
_NAMES = {
    "engine.revision": "the engine's revision",
    "method.revision": "the method's revision",
    "method.code": "the plugin's code",
    "backbone": "the backbone's weights or preprocessing",
    "data": "the dataset's images, labels, splits or groups",
    "loader.revision": "the loader's revision",
    "sampler.revision": "the sampler's revision",
    "texts": "class names or templates",
}


@dataclass(frozen=True)
class Stored:
    """What an output folder holds. records: without history, in the order of adding. disputed:
    keys of several submissions; they have a result, though none that stands."""

    records: tuple[Record, ...] = ()
    disputed: frozenset[str] = frozenset()
    _by_key: dict[str, Record] = field(default_factory=dict, repr=False)
    _by_slot: dict[Slot, Record] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._by_key.update((record.key, record) for record in self.records)
        self._by_slot.update((record.slot, record) for record in self.records)

    @classmethod
    def read(cls, out: Path) -> Self:
        """The records of the folder `out`; nothing where it has none. Raises StoreError."""
        if not (out / FILE).exists():
            return cls()
        with Store(out, readonly=True) as store:
            return cls(tuple(store.records(history=False)), frozenset(store.disputed()))

    def judge(self, cell: PlannedCell, retry: bool = True) -> PlannedCell:
        """The cell with the state that it has here. retry: whether a failed one is to be done."""
        if cell.status != "todo":
            return cell
        record, last = self._by_key.get(cell.key), self._by_slot.get(cell.slot)
        if cell.key in self.disputed or (record is not None and record.ok):
            return replace(cell, status="done")
        if record is not None and retry:
            return replace(cell, reason="failed before, tried again")
        if record is not None:
            return replace(cell, status="done", reason=NOT_AGAIN)
        return cell if last is None else replace(cell, reason=what_changed(last, cell.parts))


def what_changed(old: Record, parts: Mapping[str, Any]) -> str:
    """In words: why the record `old` does not answer for a cell whose key has `parts`."""
    before = old.provenance.get("key_parts")
    if not isinstance(before, dict):
        return "changed since the last result, which does not tell of what its key was made"
    flat_before, flat_now = _flat(before), _flat(parts)
    told = []
    for name in dict.fromkeys([*flat_now, *flat_before]):
        was, now = flat_before.get(name), flat_now.get(name)
        if was != now:
            told.append(f"{_NAMES.get(name, name)} ({_show(was)} -> {_show(now)})")
    return f"changed since the last result: {', '.join(told) or 'nothing that the key names'}"


def _flat(parts: Mapping[str, Any]) -> dict[str, Any]:
    flat = {}
    for name, value in parts.items():
        if isinstance(value, Mapping):
            flat.update({f"{name}.{key}": item for key, item in value.items()})
        else:
            flat[name] = value
    return flat


def _show(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, str) and len(value) == 64:
        return value[:8]
    return str(value)
