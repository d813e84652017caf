"""The planned cells of a run: the planner makes them, the driver and `--dry-run` show them, and the
store keeps them, so that a table knows what is still missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from vipbench.results.records.record import CellId, Record

Slot = tuple[str, str, str, int | str, int]

# What the store keeps of a cell; the rest concerns one run on one machine.
_STORED = tuple("key backbone dataset method method_name shots seed status reason run note".split())


class PlannedCell(CellId):
    """One cell of a run's grid.

    key: the record's key, "" where an impossible cell has none. reason: why the cell is
    impossible, or why it runs again. note: what that run's tables say of the row. run: which of the
    folder's runs asked for it last, from 1. group: cells of one group can be trained as one.
    plugin, file: whom a failure is attributed to. parts: what the key is made of. plugins: the
    sources of the users' plugins whose code it runs. Raises ValueError for a field that does not
    fit.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    method_name: str = ""  # plans of earlier versions do not have it
    key: str = ""
    status: Literal["todo", "done", "impossible"] = "todo"
    reason: str | None = None
    note: str = ""
    run: int = 1
    group: str = ""
    plugin: str = ""
    file: str = ""
    parts: dict[str, Any] = Field(default={}, repr=False)
    plugins: tuple[str, ...] = Field(default=(), repr=False, strict=False)  # JSON knows no tuples

    @field_validator("key", mode="before")
    @classmethod
    def _text(cls, key: Any) -> Any:
        return key or ""

    @model_validator(mode="after")
    def _can_be_found(self) -> Self:
        if self.status != "impossible" and not self.key:
            raise ValueError(f"a planned cell that can be run has a key; {self} has none")
        return self

    @classmethod
    def of(cls, record: Record, **fields: Any) -> Self:
        """The cell that `record` is of."""
        return cls(key=record.key, **record.cell.model_dump(), **fields)

    @property
    def slot(self) -> Slot:
        """The place in the grid: (backbone, dataset, method label, shots, seed)."""
        return (self.backbone, self.dataset, self.method, self.shots, self.seed)

    def stored(self) -> dict[str, Any]:
        """As the store keeps it: JSON values."""
        return self.model_dump(include=set(_STORED))


def planned_cell(value: PlannedCell | Mapping[str, Any]) -> PlannedCell:
    """A PlannedCell from a mapping with the fields that the store keeps; other keys are passed
    over. Raises ValueError."""
    if isinstance(value, PlannedCell):
        return value
    try:
        return PlannedCell(**{name: value[name] for name in _STORED if name in value})
    except ValidationError as error:
        raise ValueError(f"not a planned cell: {error}") from None


def merge(old: Iterable[PlannedCell], new: Iterable[PlannedCell], run: int) -> list[PlannedCell]:
    """The plan of a folder after run number `run` asked for `new`.

    The new cells come first, in their order. Of the old ones those stay whose place in the grid the
    new run did not take: the same row with other settings replaces, a wider run adds.
    """
    cells = {cell.slot: cell.model_copy(update={"run": run}) for cell in new}
    kept = [cell for cell in old if cell.slot not in cells]
    return [*cells.values(), *kept]
