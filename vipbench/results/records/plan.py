"""The cells that were asked for, which tell a table what is still missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

Slot = tuple[str, str, str, int | str, int]


@dataclass(frozen=True)
class PlanCell:
    """One cell of a run's grid. `method` is the row's label; shots: images per class, "full", or 0
    for methods that see no support set; status: "todo", "done" or "impossible", with the reason.
    key: the record's key, None where an impossible cell has none. run: which of the folder's runs
    asked for it last, from 1. note: what that run's tables say of the row."""

    key: str | None
    backbone: str
    dataset: str
    method: str
    shots: int | str
    seed: int
    status: str = "todo"
    reason: str | None = None
    run: int = 1
    note: str = ""

    def __post_init__(self) -> None:
        texts = (self.backbone, self.dataset, self.method)
        if not all(isinstance(t, str) and t for t in texts):
            raise ValueError(
                f"a planned cell's backbone, dataset and method are texts, not {texts}"
            )
        if self.shots != "full" and (type(self.shots) is not int or self.shots < 0):
            raise ValueError(f"a planned cell's shots are a number or 'full', not {self.shots!r}")
        if type(self.seed) is not int:
            raise ValueError(f"a planned cell's seed is a whole number, not {self.seed!r}")
        if self.status not in ("todo", "done", "impossible"):
            raise ValueError(
                f"a planned cell's status is todo, done or impossible, not {self.status!r}"
            )
        if self.status != "impossible" and not isinstance(self.key, str):
            raise ValueError(f"a planned cell that can be run has a key; {self} has none")

    @property
    def slot(self) -> Slot:
        """The place in the grid: (backbone, dataset, method label, shots, seed)."""
        return (self.backbone, self.dataset, self.method, self.shots, self.seed)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def plan_cell(value: PlanCell | Mapping[str, Any]) -> PlanCell:
    """A PlanCell from a mapping with its fields; other keys are passed over. Raises ValueError."""
    if isinstance(value, PlanCell):
        return value
    known = {k: value[k] for k in PlanCell.__dataclass_fields__ if k in value}
    try:
        return PlanCell(**known)
    except TypeError as error:
        raise ValueError(f"not a planned cell: {error}") from None


def merge(old: Iterable[PlanCell], new: Iterable[PlanCell], run: int) -> list[PlanCell]:
    """The plan of a folder after run number `run` asked for `new`.

    The new cells come first, in their order. Of the old ones those stay whose place in the grid the
    new run did not take: the same row with other settings replaces, a wider run adds.
    """
    cells = {cell.slot: replace(cell, run=run) for cell in new}
    kept = [cell for cell in old if cell.slot not in cells]
    return [*cells.values(), *kept]
