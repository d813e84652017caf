"""What a run plans, tells and comes to, as its caller sees it. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vipbench.results import Record


@dataclass(frozen=True)
class PlannedCell:
    """One cell of the grid. shots: images per class, "full", or 0 for zero-shot methods.
    status: done, todo or impossible; reason: why impossible, or why to be done again. note: what
    tables of this run say of the row. parts: of what the key is made."""

    key: str
    backbone: str
    dataset: str
    method: str
    shots: int | str
    seed: int
    status: str
    reason: str | None
    group: str
    plugin: str
    file: str
    note: str = ""
    parts: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def slot(self) -> tuple[str, str, str, int | str, int]:
        """The place in the grid, as records have it."""
        return (self.backbone, self.dataset, self.method, self.shots, self.seed)

    def as_dict(self) -> dict[str, Any]:
        """As the store keeps plans."""
        names = (
            "key",
            "backbone",
            "dataset",
            "method",
            "shots",
            "seed",
            "status",
            "reason",
            "note",
        )
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Plan:
    """All cells of a run, in table order. notices: lines that a person should see. info: device,
    number of workers and versions, as the worker found them."""

    cells: list[PlannedCell]
    notices: list[str] = field(default_factory=list)
    info: dict[str, str] = field(default_factory=dict)

    def of(self, status: str) -> list[PlannedCell]:
        """The cells of one status."""
        return [cell for cell in self.cells if cell.status == status]

    def groups(self) -> list[list[str]]:
        """The keys of the cells that are to be done, by the group that they run in."""
        found: dict[str, list[str]] = {}
        for cell in self.of("todo"):
            found.setdefault(cell.group, []).append(cell.key)
        return list(found.values())


@dataclass(frozen=True)
class Estimate:
    """What one group of cells will take. group: the row. work_seconds: to train and score; None
    where it cannot be told. note: why. What groups share is counted with the first."""

    group: str
    cells: int
    note: str = ""
    encode_seconds: float = 0.0
    work_seconds: float | None = None
    cache_bytes: int = 0
    result_bytes: int = 0
    memory_bytes: int = 0


@dataclass(frozen=True)
class CatalogueEntry:
    """One registered thing for `vipbench list`; kind: method, backbone or dataset."""

    kind: str
    name: str
    help: str
    detail: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a run came to. done: cells finished now; failed: error records written now; skipped:
    cells that were done before; signal: what stopped it (2, 15), or None."""

    done: int
    failed: int
    skipped: int
    impossible: int
    signal: int | None = None

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

    def note(self, text: str) -> None:
        """One line worth reading."""
