"""What a run reports and returns, and what changed since a record was stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from vipbench.engine.workers.messages import Plan
from vipbench.results import Predictions, Record
from vipbench.results.records.plan import PlannedCell, Slot
from vipbench.results.store.store import FILE, Store
from vipbench.results.store.submissions import OWN, submitter


@dataclass(frozen=True)
class Outcome:
    """What a run came to. done: cells finished now; failed: error records written now; skipped:
    cells that were done before; signal: what stopped it (2, 15), or None; broken: whether plugins
    were left out, since they cannot be planned with."""

    done: int
    failed: int
    skipped: int
    impossible: int
    signal: int | None = None
    broken: bool = False

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended the run early."""
        return self.signal is not None


class Observer:
    """What a run tells; override what you want to hear."""

    def planned(self, plan: Plan) -> None:
        """Before anything runs."""

    def cell_done(self, cell: PlannedCell, record: Record) -> None:
        """A cell's record is on the disk."""

    def progress(self, cell: PlannedCell, share: float) -> None:
        """How far the group of this cell is: share in [0,1] of its cells that have no record yet.
        Several groups may be in work."""

    def encoding(self, cell: PlannedCell, done: int, total: int) -> None:
        """Before cells of this backbone and dataset: how many of the images and views that they
        read are encoded, and of how many."""

    def note(self, text: str) -> None:
        """One line worth reading."""


class Keeper(Protocol):
    """Takes what a run brings, as a Store does."""

    def save_plan(self, cells: Iterable[PlannedCell]) -> None:
        """Keep what the run asks for."""

    def add_many(
        self,
        pairs: Iterable[tuple[Record, Predictions | None]],
        parameters: Mapping[str, bytes] | None = None,
    ) -> None:
        """Keep all of these results, on the disk on return."""

    def close(self) -> None:
        """No more is to come."""


class Results(Keeper, Protocol):
    """A Keeper in the place of the store of the run's folder."""

    def judge(self, cell: PlannedCell) -> PlannedCell:
        """The cell with the state that it has here."""


NOT_AGAIN = "failed before, not retried"

_NAMES = {
    "engine.revision": "the engine's revision",
    "method.revision": "the method's revision",
    "method.code": "the plugin's code",
    "reader.revision": "the revision of the image reader",
    "features.revision": "the revision of the image pass",
    "text.revision": "the revision of the text pass",
    "backbone": "the backbone's weights, tokenizer or preprocessing, or how they are read",
    "data": "the dataset's images, labels, class names, splits or groups",
    "loader.revision": "the loader's revision",
    "sampler.revision": "the sampler's revision",
    "views.revision": "the revision of training views",
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

    def judge(self, cell: PlannedCell, retry: bool = True, imported: bool = False) -> PlannedCell:
        """The cell with the state that it has here. retry: whether a failed one is to be done.
        imported: whether a result that others submitted counts as done."""
        if cell.status != "todo":
            return cell
        record, last = self._by_key.get(cell.key), self._by_slot.get(cell.slot)
        if cell.key in self.disputed:
            return cell.model_copy(update={"status": "done"})
        if record is not None and record.ok:
            if imported or submitter(record) == OWN:
                return cell.model_copy(update={"status": "done"})
            why = f"submitted by '{submitter(record)}', not run here (--use-imported counts it)"
            return cell.model_copy(update={"reason": why})
        if record is not None and retry:
            return cell.model_copy(update={"reason": "failed before, tried again"})
        if record is not None:
            return cell.model_copy(update={"status": "done", "reason": NOT_AGAIN})
        return (
            cell
            if last is None
            else cell.model_copy(update={"reason": what_changed(last, cell.parts)})
        )


def what_changed(old: Record, parts: Mapping[str, Any]) -> str:
    """In words: why the record `old` does not answer for a cell whose key has `parts`."""
    before = old.provenance.get("key_parts")
    if not isinstance(before, dict):
        return "changed since the last result, which does not state what its key was made of"
    flat_before, flat_now = _flat(before), _flat(parts)
    changes = []
    for name in dict.fromkeys([*flat_now, *flat_before]):
        was, now = flat_before.get(name), flat_now.get(name)
        if was != now:
            changes.append(f"{_NAMES.get(name, name)} ({_show(was)} -> {_show(now)})")
    return f"changed since the last result: {', '.join(changes) or 'nothing that the key names'}"


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
