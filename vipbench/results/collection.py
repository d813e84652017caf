"""A store that also takes what others hand in. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from vipbench.results import parameters as learned
from vipbench.results.database import explained, get_meta, put_meta, transaction
from vipbench.results.lock import StoreError
from vipbench.results.predictions import Predictions
from vipbench.results.record import Record
from vipbench.results.rows import Row, count, write
from vipbench.results.store import Store
from vipbench.results.submissions import (
    CHOICES,
    Fingerprint,
    agree,
    fingerprint,
    get_choices,
)

# A record, what it predicted, and, where it is kept too, what was learned.
Handed = tuple[Record, Predictions | None] | tuple[Record, Predictions | None, bytes | None]
Submitted = Literal["new", "same", "other"]


class Collection(Store):
    """The output folder's store, where several results may lie under one key.

    While they differ and none was chosen no record stands for the key, so that no table shows one
    of them as the result. Nothing is averaged, and nothing is thrown away.
    """

    def submit(self, handed: Iterable[Handed]) -> list[Submitted]:
        """Keep results beside what is there; of each is told what came of it.

        "new": the key was not there, or had failed. "same": these scores are there already (these
        metrics, where either comes without scores), or the cell failed elsewhere; nothing is kept.
        "other": the scores differ from those that are there, and both are kept.
        """
        rows: dict[str, list[Row]] = {}
        for row in self._rows():
            rows.setdefault(row.key, []).append(row)
        known: dict[int, Fingerprint] = {}
        told: list[Submitted] = []
        with explained(self.path), transaction(self._writable()) as db:
            counted = get_meta(db, self.path, "records")
            for record, predictions, *rest in handed:
                there = rows.setdefault(record.key, [])
                failed = [row for row in there if row.status == "error"]
                if there and not record.ok:
                    told.append("same")
                    continue
                mine = fingerprint(record, predictions)
                if not failed and any(agree(mine, self._known(row, known)) for row in there):
                    told.append("same")
                    continue
                told.append("other" if there and not failed else "new")
                number = failed[0].id if failed else counted["count"] + 1
                row = write(db, number, record, predictions)
                for parameters in rest:
                    if parameters is not None:
                        learned.write(db, number, record, parameters)
                known[number] = mine
                if failed:
                    counted = count(counted, failed[0], -1)
                    there.remove(failed[0])
                counted = count(counted, row, 1)
                there.append(row)
            put_meta(db, "records", counted)
        self._rows()
        return told

    def _known(self, row: Row, known: dict[int, Fingerprint]) -> Fingerprint:
        if row.id not in known:
            known[row.id] = fingerprint(self._parse(row, None), self._unpack(row.id, row.key))
        return known[row.id]

    def choose(self, choices: Mapping[str, int]) -> None:
        """Say which of a key's submissions stands: key -> number, as `submissions` gives it.
        Raises StoreError for a number that the key does not have."""
        there = {(row.key, row.id) for row in self._rows()}
        for key, number in choices.items():
            if (key, number) not in there:
                raise StoreError(f"{self.path} has no submission {number} of the key {key}")
        with explained(self.path), transaction(self._writable()) as db:
            put_meta(db, CHOICES, get_choices(db, self.path) | dict(choices))
        self._rows()
