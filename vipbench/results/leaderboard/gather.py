"""The records of one or several output folders, taken together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from vipbench.results.records import code
from vipbench.results.records.folds import pool
from vipbench.results.records.plan import PlannedCell
from vipbench.results.records.predictions import Predictions
from vipbench.results.records.record import Record
from vipbench.results.store.store import Store
from vipbench.results.store.submissions import agree, fingerprint


@dataclass
class Gathered:
    """records: one of every key that is not in dispute. disputed: key -> the results of it that
    differ, within a folder or between folders. plan: the cells that were asked for, each once.
    predictions: the scores of every test image of a record of `records`. outdated: records of rows
    that are of other code by now in their folder, which are in neither."""

    records: list[Record] = field(default_factory=list)
    disputed: dict[str, list[Record]] = field(default_factory=dict)
    plan: list[PlannedCell] = field(default_factory=list)
    outdated: list[Record] = field(default_factory=list)
    predictions: Callable[[str], Predictions | None] = lambda key: None


class Folders:
    """Several results folders, open for reading while `with` lasts. Raises StoreError."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._stack = ExitStack()
        try:
            self.stores = [
                self._stack.enter_context(Store(folder, readonly=True)) for folder in folders
            ]
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def gather(self) -> Gathered:
        """All records, without histories. A failed one gives way to a result of the same key; of
        results that agree the first is taken."""
        found: dict[str, list[Record]] = {}
        home: dict[str, Store] = {}
        plan: dict[tuple[str | None, object], PlannedCell] = {}
        outdated: dict[str, Record] = {}
        for store in self.stores:
            records = store.records(history=False)
            older = code.outdated(records, store.plan())
            outdated |= older
            for record in records:
                if record.key not in older:
                    _collect(found.setdefault(record.key, []), record)
                    home.setdefault(record.key, store)
            disputed = store.submissions()
            for key in store.disputed():
                for _, record in disputed[key]:
                    _collect(found.setdefault(key, []), record)
            for cell in store.plan():
                plan.setdefault((cell.key, cell.slot), cell)

        def predictions(key: str) -> Predictions | None:
            return home[key].predictions(key) if key in home else None

        single = [records[0] for records in found.values() if len(records) == 1]
        pooled = pool(single, plan.values(), predictions)
        return Gathered(
            pooled.records,
            {key: records for key, records in found.items() if len(records) > 1},
            pooled.planned,
            # Another folder may hold the same record where its row is still of that code.
            [record for key, record in outdated.items() if key not in found],
            pooled.predictions(predictions),
        )


def _collect(there: list[Record], record: Record) -> None:
    if not record.ok and there:
        return
    if record.ok and there and not there[0].ok:
        there.clear()
    mine = fingerprint(record, None)
    if not any(agree(mine, fingerprint(other, None)) for other in there):
        there.append(record)
