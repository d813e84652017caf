"""Moves the results of jobs into the store, in one transaction for all that have arrived."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path

from vipbench.engine.cluster import sealed
from vipbench.engine.cluster.folder import Parts
from vipbench.engine.cluster.results import read_batch, set_aside
from vipbench.engine.workers.messages import Done
from vipbench.results import Predictions, Record
from vipbench.results.records.plan import PlannedCell
from vipbench.results.store.store import Store
from vipbench.runspec.run import RunSpec


class Collector:
    """Moves results that have arrived in OUT/parts into the open store. note: receives lines for a
    person.

    arrived: called with each new record once it is in the store. imported: whether results that
    others submitted count. statuses: key -> "ok" or "error" of the store's records. new: the keys
    of results stored by this object. twice: keys of cells that were computed twice with different
    scores.
    """

    def __init__(
        self,
        parts: Parts,
        store: Store,
        note: Callable[[str], None] = lambda line: None,
        arrived: Callable[[Record], None] = lambda record: None,
        imported: bool = False,
    ) -> None:
        self.parts, self.store = parts, store
        self.note, self.arrived = note, arrived
        self.statuses = store.status(imported)
        self.new: set[str] = set()
        self.twice: set[str] = set()
        self._seen: set[Path] = set()
        self._keys: dict[int, list[str]] = {}

    def collect(self, numbers: Iterable[int]) -> int:
        """Take in the new files of these parts; how many results were new. Raises StoreError."""
        pairs: dict[str, tuple[Record, Predictions | None]] = {}
        learned: dict[str, bytes] = {}
        files = [f for n in numbers for f in self.parts.batches(n) if f not in self._seen]
        taken = []
        for file in files:
            try:
                every = list(read_batch(file))
            except FileNotFoundError:
                continue
            except (sealed.DamagedError, ValueError) as error:
                self.note(f"{error}; its cells are run again")
                set_aside(file)
                continue
            except OSError as error:
                self.note(f"{file} cannot be read yet ({error.strerror})")
                continue
            taken.append(file)
            for done in every:
                record, held = done.record, pairs.get(done.record.key)
                if held is not None and held[0].ok:
                    self._compare(done, held[1])
                elif self.statuses.get(record.key) == "ok":
                    if record.ok:
                        self._compare(done, self.store.predictions(record.key))
                else:
                    pairs[record.key] = (record, done.predictions)
                    learned.pop(record.key, None)
                    if done.parameters is not None:
                        learned[record.key] = done.parameters
        if pairs:
            self.store.add_many(pairs.values(), learned)
        self._seen.update(taken)
        for record, _ in pairs.values():
            self.statuses[record.key] = record.status
            self.new.add(record.key)
            self.arrived(record)
        return len(pairs)

    def complete(self, number: int, retried: Collection[str] = ()) -> bool:
        """Whether each cell of a part has a result; those of the keys `retried` do not count."""
        if number not in self._keys:
            plan = self.parts.plan(number)
            if plan is None:
                return False
            self._keys[number] = [cell.key for cell in plan if cell.status != "impossible"]
        return all(k in self.statuses and k not in retried for k in self._keys[number])

    def _compare(self, done: Done, kept: Predictions | None) -> None:
        """The first result that was collected stays."""
        new = done.predictions
        same = (new is None) == (kept is None)
        if same and new is not None and kept is not None:
            same = new.scores.tobytes() == kept.scores.tobytes()
        if done.record.ok and not same:
            self.twice.add(done.record.key)

    def remove(self, numbers: Iterable[int], retried: Collection[str] = ()) -> None:
        """Remove the files of parts of which no job is alive; they are in the store. What is done
        is noted first, but for the keys `retried`, which are to be run again."""
        files = [f for n in numbers for f in self.parts.batches(n) if f in self._seen]
        if not files:
            return
        self.note_done(retried)
        for file in files:
            with suppress(OSError):
                file.unlink()
            self._seen.discard(file)

    def note_done(self, retried: Collection[str] = ()) -> None:
        """Leave for the jobs what has a result in the store. Raises OSError."""
        kept = {key: status for key, status in self.statuses.items() if key not in retried}
        sealed.write_json(self.parts.folder / "done", kept)

    def save_plan(self, spec: RunSpec) -> list[PlannedCell]:
        """Keep in the store what the parts were planned to have, in the order of the whole; returns
        it."""
        cells = planned(self.parts, spec)
        if cells and [(c.key, c.slot) for c in cells] != [
            (c.key, c.slot) for c in self.store.plan(latest=True)
        ]:
            self.store.save_plan(cells)
        return cells


def planned(parts: Parts, spec: RunSpec) -> list[PlannedCell]:
    """The cells of all parts that were planned, in the order of the grid."""
    found: list[PlannedCell] = []
    for part in sorted(parts.parts().values(), key=lambda part: part.order):
        found += parts.plan(part.number) or []
    rows: dict[tuple[str, str, str], int] = {}
    for cell in found:
        rows.setdefault((cell.backbone, cell.dataset, cell.method), len(rows))
    shots = {k: place for place, k in enumerate(spec.shots)}
    seeds = {seed: place for place, seed in enumerate(spec.seeds)}

    def place(cell: PlannedCell) -> tuple[int, int, int]:
        row = rows[cell.backbone, cell.dataset, cell.method]
        return row, shots.get(cell.shots, -1), seeds.get(cell.seed, -1)

    return list({cell.slot: cell for cell in sorted(found, key=place)}.values())
