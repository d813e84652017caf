"""The results of a part on their way to the store: a file for each batch, that is, for what was
trained together. The shared disk needs no lock and no database, and a restarted job knows from the
files what is done."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from vipbench.engine.cluster import sealed
from vipbench.engine.cluster.folder import BATCH, Part, Parts
from vipbench.engine.workers.messages import Done, MessageError, read_event, to_line
from vipbench.files import make_folder
from vipbench.results import Predictions, Record
from vipbench.results.records.plan import PlannedCell

# Of a batch whose file is not what was written; its cells are run again.
DAMAGED = ".damaged"


class PartResults:
    """Takes what a part brings (see `workers.plan.Results`). note: receives lines for a person.
    kept: called after each batch with the seconds since the one before."""

    def __init__(
        self,
        parts: Parts,
        part: Part,
        note: Callable[[str], None],
        kept: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._parts, self._part, self._kept = parts, part, kept
        self._folder = parts.file(part.number, "")
        make_folder(self._folder, parts.out)
        self._done = parts.done()
        self._last = time.monotonic()
        self._todo: set[str] | None = None
        for file in parts.batches(part.number):
            try:
                self._done.update(sealed.read(file)[0])
            except FileNotFoundError:  # the collector has it
                continue
            except sealed.DamagedError as error:
                note(f"{error}; its cells are run again")
                set_aside(file)

    def judge(self, cell: PlannedCell) -> PlannedCell:
        """Done where it has a result, or where its result is for another part to bring."""
        if cell.status == "todo" and (cell.key in self._done or self._is_of_another(cell)):
            return cell.model_copy(update={"status": "done"})
        return cell

    def _is_of_another(self, cell: PlannedCell) -> bool:
        return cell.shots == 0 and cell.seed == 0 and not self._part.without_support

    def save_plan(self, cells: Iterable[PlannedCell]) -> None:
        """Keep what the part is asked for. Raises ChangedError, OSError."""
        cells = [cell for cell in cells if not self._is_of_another(cell)]
        hashes = {f"backbone '{c.backbone}'": c.parts.get("backbone") for c in cells}
        hashes |= {f"dataset '{c.dataset}'": c.parts.get("data") for c in cells}
        hashes |= {f"method '{c.method_name}'": c.parts.get("method.code") for c in cells}
        self._parts.require_same({name: own for name, own in hashes.items() if own})
        self._todo = {cell.key for cell in cells if cell.status == "todo"}
        groups: dict[str, int] = {}
        for cell in cells:
            groups[cell.group] = groups.get(cell.group, 0) + (cell.status == "todo")
        sealed.write_json(self._parts.file(self._part.number, ".plan"), [c.stored() for c in cells])
        self._parts.note(self._part.number, "plan", most=max([1, *groups.values()]))
        self._last = time.monotonic()

    @property
    def complete(self) -> bool:
        """Whether each cell that was planned has a result."""
        return self._todo is not None and not self._todo

    def add_many(
        self,
        pairs: Iterable[tuple[Record, Predictions | None]],
        parameters: Mapping[str, bytes] | None = None,
    ) -> None:
        """Write one file; it is on the disk on return. Raises OSError."""
        learned = parameters or {}
        done = [
            Done(record=record, predictions=predictions, parameters=learned.get(record.key))
            for record, predictions in pairs
        ]
        statuses = {one.record.key: one.record.status for one in done}
        # By the time, so that batches are collected in the order in which they came.
        name = f"{time.time_ns():020d}-{secrets.token_hex(4)}{BATCH}"
        sealed.write(self._folder / name, b"".join(map(to_line, done)), statuses, sync=True)
        self._done.update(statuses)
        self._todo = None if self._todo is None else self._todo - statuses.keys()
        failed = sum(status != "ok" for status in statuses.values())
        self._parts.note(self._part.number, "batch", cells=len(done), failed=failed)
        now = time.monotonic()
        self._kept(now - self._last)
        self._last = now

    def close(self) -> None:
        """See `workers.plan.Results`."""


def set_aside(file: Path) -> None:
    """Take a damaged file out of the way; it stays to be looked at."""
    file.replace(file.with_suffix(DAMAGED))


def read_batch(file: Path) -> Iterator[Done]:
    """What one file brings. Raises DamagedError, FileNotFoundError, OSError."""
    _, body = sealed.read(file)
    for line in body.splitlines():
        try:
            event = read_event(line)
        except MessageError as error:
            raise sealed.DamagedError(f"{file} is not a valid results file: {error}") from None
        if isinstance(event, Done):
            yield event
