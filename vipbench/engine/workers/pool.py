"""The workers of one run: they take groups of cells from one queue, whoever is free the next.

One loop in the driver's process watches them all. A worker that ends, hangs or takes too much
memory costs the cells that it was at and is replaced; the others go on.

A plugin may change anything of the process that has loaded it. So a worker has a plugin set,
the plugins that it loads, and is given those cells alone that run the code of all of these and of
no others; built-in cells run where no plugin was loaded. What cells of a plugin read of images that
are not its own is encoded by a worker that has not loaded it, so that it serves others too.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol

from vipbench.engine.workers.messages import (
    Begun,
    Done,
    Encode,
    Event,
    GroupDone,
    MakePlan,
    Plan,
    Refused,
    RunCells,
    Tick,
    Untrusted,
    Want,
)
from vipbench.engine.workers.planners import MOST_STARTS, Planners
from vipbench.engine.workers.process import (
    BEAT,
    MEMORY_VARIABLE,
    PlannedOtherwiseError,
    Stopped,
    Worker,
    WorkerDiedError,
    most_memory,
    over_memory,
)
from vipbench.errors import UsageError
from vipbench.runspec.run import RunSpec
from vipbench.trust import UntrustedCodeError


@dataclass
class Group:
    """Cells that run as one. pair: backbone and dataset, whose images and texts they share.
    plugins: the users' plugins whose code they run. alone: whether they are tried one by one, since
    they ended a worker together. wants: what others are to encode first.
    """

    keys: list[str]
    pair: tuple[str, str]
    plugins: frozenset[str] = frozenset()
    wants: Sequence[Want] = ()
    alone: bool = False
    deaths: int = 0
    # Turns that ended their worker before it sent the base records of the cells.
    unbegun: int = 0
    # What their records hold in any case, sent by the worker before it begins.
    bases: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def plugin_set(self) -> frozenset[str]:
        """That of the worker that is to have it next."""
        return frozenset(self.wants[0].plugins) if self.wants else self.plugins


class Sink(Protocol):
    """Receives the results of the pool."""

    def take(self, event: Event) -> None:
        """A finished cell, or a note."""

    def write_off(self, base: Mapping[str, Any], kind: str, message: str) -> None:
        """A cell that will have no result, of which `base` is known."""

    def leave_out(self, keys: Sequence[str], message: str) -> None:
        """Cells of a plugin of which nothing can be known."""

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Those that have no record of this run."""

    def progress(self, key: str, share: float) -> None:
        """How far the group of this cell is."""

    def settle(self) -> None:
        """Nothing more arrives at once: what was taken belongs on the disk."""

    def encoding(self, key: str, done: int, total: int) -> None:
        """Images and views encoded so far, and their total, for this cell and others."""


@dataclass
class Slot:
    """A place for one worker, and what that is at. number: decides the device. spare: waits for
    cells that the worker must not have, or for the worker's end at the limit: it is started before,
    so that the next cell need not wait."""

    number: int
    worker: Worker | None = None
    spare: Worker | None = None
    group: Group | None = None
    keys: list[str] = field(default_factory=list)
    pair: tuple[str, str] | None = None
    spoilt: bool = False
    # Groups of the queue for which images are encoded together with those for `group`.
    others: list[Group] = field(default_factory=list)

    def drop(self) -> None:
        """End the worker; the spare takes its place."""
        if self.worker is not None:
            self.worker.close()
        self.worker, self.spare = self.spare, None


Used = tuple[int, Slot, Worker]


def too_large(used: list[Used]) -> list[Used]:
    """Of workers and the bytes that each takes: who is to be ended, before the system ends a
    process of its own choice, which might be the driver.

    Who takes more than `VIPBENCH_WORKER_GB`; without that, where all together take more than a
    share of the machine's or job's memory, the largest of those that wait, else of all.
    """
    if os.environ.get(MEMORY_VARIABLE):
        return [found for found in used if found[0] > most_memory()]
    if used and sum(taken for taken, _, _ in used) > most_memory():
        return [max(used, key=lambda found: (found[2] is found[1].spare, found[0]))]
    return []


DIED, TIMEOUT, NOT_TRIED, SILENT = "WorkerDied", "Timeout", "NotTried", "NoResult"
UNTRUSTED = "UntrustedCode"


# After so many of a group's cells ended a worker each, the rest are written off untried.
MOST_DEATHS = 2

# A spare is started when so many groups are left that its slot's worker may have.
FEW = 2


class Pool:
    """stop: asked several times a second; True raises Stopped. again: whether to leave out a plugin
    whose worker plans other cells, where PlannedOtherwiseError is raised at first."""

    def __init__(
        self, spec: RunSpec, sink: Sink, stop: Callable[[], bool], again: bool = False
    ) -> None:
        self._again = again
        self._spec = spec
        self._limit = spec.cell_timeout
        self._sink = sink
        self._stop = stop
        self._slots = [Slot(0)]
        self._queue: list[Group] = []
        self._known: dict[frozenset[str], set[str]] = {}
        self._starts = 0
        self._looked = 0.0
        # Whether there is memory for workers that wait.
        self._spares = True

    def start(self, workers: Planners, plan: Plan) -> None:
        """Take over the workers that made the plan."""
        for cell in plan.cells:
            self._known.setdefault(frozenset(cell.plugins), set()).add(cell.key)
        [slot] = self._slots
        for worker in workers.release(set(self._known)):
            if slot.worker is None:
                slot.worker = worker
            else:
                slot.spare = worker

    def work(self, groups: Sequence[Group], workers: int) -> None:
        """Run all groups, at most `workers` at a time. Raises UsageError, Stopped."""
        # Built-in cells first: meanwhile the others' workers start.
        self._queue = sorted(groups, key=lambda group: sorted(group.plugins))
        self._slots += [Slot(number) for number in range(1, min(workers, len(groups)))]
        if len(self._slots) > 1:
            first, second = self._slots[:2]
            second.worker, first.spare = first.spare, None
        while self._queue or any(slot.group for slot in self._slots):
            for slot in self._slots:
                if self._queue and slot.group is None:
                    self._assign(slot)
            self._watch()

    def rescue(self) -> None:
        """Hand in the finished cells that have arrived and that nobody has taken."""
        until = time.monotonic() + 2
        for slot in self._slots:
            if slot.worker is None or slot.group is None:
                continue
            try:
                while time.monotonic() < until and (events := slot.worker.receive()):
                    for event in events:
                        if isinstance(event, Done):
                            self._sink.take(event)
            except WorkerDiedError:
                continue

    def close(self) -> None:
        """End every worker."""
        for slot in self._slots:
            for worker in (slot.worker, slot.spare):
                if worker is not None:
                    worker.close()
            slot.worker = slot.spare = None

    # Work and workers.

    def _assign(self, slot: Slot) -> None:
        group = self._choose_group(slot)
        if group is None:
            return
        if slot.worker is None or slot.worker.plugin_set != group.plugin_set:
            self._change_worker(slot, group.plugin_set)
        if slot.worker is None:
            return
        if not (slot.worker.planned and slot.worker.ready):
            if group.wants and slot.spare is None:
                self._prepare(slot)
            return
        self._queue.remove(group)
        slot.group, slot.pair, slot.spoilt = group, group.pair, False
        keys = self._sink.missing(group.keys)
        slot.keys = keys[:1] if group.alone else keys
        try:
            if group.wants:
                own = group.plugin_set
                slot.others = [one for one in self._queue if one.wants and one.plugin_set == own]
                wants = [one.wants[0] for one in (group, *slot.others)]
                encodings = tuple(chain(*(want.encodings for want in wants)))
                slot.worker.send(Encode(encodings=encodings))
            else:
                slot.worker.send(
                    RunCells(keys=tuple(slot.keys), ahead=self._cells_to_encode(slot, group))
                )
        except WorkerDiedError as error:
            self._died(slot, slot.worker, error)
            return
        alike = sum(other.plugin_set == group.plugin_set for other in self._queue)
        if self._queue and alike < FEW:
            self._prepare(slot)

    def _cells_to_encode(self, slot: Slot, group: Group) -> tuple[str, ...]:
        """Cells whose images the slot's worker is to encode with those of `group`: all of this pair
        that it may be given later. Each worker hears them once."""
        assert slot.worker is not None
        # What encodes them may be what ended a worker before.
        if group.alone or group.unbegun or group.pair in slot.worker.encoded:
            return ()
        slot.worker.encoded.add(group.pair)
        later = [g for g in self._queue if g.pair == group.pair and g.plugins == group.plugins]
        return tuple(key for one in later for key in self._sink.missing(one.keys))

    def _choose_group(self, slot: Slot) -> Group | None:
        """Which group of the queue: one that this worker may have, else its spare; of these one
        whose images and texts it has in memory; else one of which no other worker is just making
        the features; else any. What another slot can encode for others is left to it."""
        at_work = [other for other in self._slots if other is not slot and other.group]
        others = {other.pair for other in at_work}
        plugin_sets = [w.plugin_set for w in (slot.worker, slot.spare) if w is not None]

        def rank(group: Group) -> tuple[int, bool, bool]:
            first = [*plugin_sets, group.plugin_set].index(group.plugin_set)
            return first, group.pair != slot.pair, group.pair in others

        taken = {p.worker.plugin_set for p in self._slots if p is not slot and p.worker}
        taken.difference_update(plugin_sets)
        left = [g for g in self._queue if not g.wants or g.plugin_set not in taken]
        return min(left, key=rank, default=None)

    def _change_worker(self, slot: Slot, plugin_set: frozenset[str]) -> None:
        """Give a slot a worker of another plugin set; its former one waits where it is needed."""
        old, slot.worker = slot.worker, None
        if slot.spare is not None and slot.spare.plugin_set == plugin_set:
            slot.worker, slot.spare = slot.spare, None
        if old is not None:
            slot.pair = None
            if slot.spare is None and self._spares and self._needed(old.plugin_set):
                slot.spare = old
            else:
                old.close()
        if slot.worker is None:
            slot.worker = self._started(slot, plugin_set)

    def _needed(self, plugin_set: frozenset[str]) -> bool:
        """Whether a group of the queue is for it."""
        return any(plugin_set in (group.plugin_set, group.plugins) for group in self._queue)

    def _prepare(self, slot: Slot) -> None:
        """Start what the slot will need when its worker has no more to do, or is at its limit."""
        assert slot.worker is not None
        left = [group.plugins for group in [slot.group, *self._queue] if group and group.wants]
        left += [group.plugin_set for group in self._queue]
        for other in self._slots:
            for worker in (other.worker, other.spare) if other is not slot else (slot.worker,):
                if worker is not None and worker.plugin_set in left:
                    left.remove(worker.plugin_set)
        left = [plugin_set for plugin_set in left if plugin_set != slot.worker.plugin_set]
        if not left or not self._spares or (slot.spare and slot.spare.plugin_set in left):
            return
        if slot.spare is not None:
            slot.spare.close()
        slot.spare = self._started(slot, left[0])

    def _started(self, slot: Slot, plugin_set: frozenset[str]) -> Worker | None:
        worker = Worker(plugin_set, self._limit)
        try:
            plugins = tuple(sorted(plugin_set))
            worker.send(MakePlan(spec=self._spec, number=slot.number, plugins=plugins))
        except WorkerDiedError as error:
            worker.close()
            self._false_start(worker, error)
            return None
        return worker

    def _false_start(self, worker: Worker, error: WorkerDiedError) -> None:
        plugin_set = worker.plugin_set
        self._starts += 1
        if self._starts == MOST_STARTS or worker.over:
            self._starts = 0
            if not plugin_set:
                raise UsageError(f"planning failed: {error}") from error
            self._leave_out(plugin_set, f"planning failed: {error}")

    def _refused(self, plugin_set: frozenset[str], message: str) -> None:
        """A worker of this plugin set cannot run what was planned."""
        if not plugin_set:
            raise UsageError(message)
        if not self._again:
            raise PlannedOtherwiseError(message)
        self._leave_out(plugin_set, message)

    def _leave_out(self, plugin_set: frozenset[str], message: str) -> None:
        """Run no more cells of this plugin set."""
        for slot in self._slots:
            if slot.spare is not None and slot.spare.plugin_set == plugin_set:
                slot.spare.close()
                slot.spare = None
            if (
                slot.group is None
                and slot.worker is not None
                and slot.worker.plugin_set == plugin_set
            ):
                slot.drop()
        gone = [group for group in self._queue if group.plugins == plugin_set]
        self._queue = [group for group in self._queue if group.plugins != plugin_set]
        for group in self._queue:
            if group.plugin_set == plugin_set:
                group.wants = []
        self._sink.leave_out([key for group in gone for key in group.keys], message)

    def _watch(self) -> None:
        """Wait a moment for events, and deal with them and with workers that gave none."""
        owners = {w: p for p in self._slots for w in (p.worker, p.spare) if w is not None}
        found = select.select(list(owners), [], [], BEAT)[0]
        readable = [worker for worker in owners if worker in found or worker.gone()]
        if self._stop():
            raise Stopped
        if not readable:
            self._sink.settle()
        # Before the events: while they are dealt with, no worker's time is counted.
        for slot in self._slots:
            if slot.group is not None and slot.worker not in readable:
                self._look_at_time(slot)
        self._look_at_memory()
        for worker in readable:
            slot = owners[worker]
            if worker not in (slot.worker, slot.spare):
                continue  # ended above
            try:
                events = worker.receive()
            except WorkerDiedError as error:
                self._died(slot, worker, error)
                continue
            for event in events:
                self._on_event(slot, worker, event)
            if worker is slot.worker and worker.ready and slot.group is not None:
                self._turn_ended(slot)

    def _on_event(self, slot: Slot, worker: Worker, event: Event) -> None:
        if isinstance(event, Refused):
            self._refused(worker.plugin_set, event.message)
            return
        if isinstance(event, Untrusted) and worker.planned:
            # Code that is imported within a cell; what this run's plan needs was allowed.
            error = UntrustedCodeError(event.what, event.asked, event.files)
            if slot.group is None or worker is not slot.worker:
                raise error
            # What else the worker has imported may be half of what it should be.
            slot.drop()
            lines = map(str.strip, str(error).splitlines())
            self._cell_failed(slot, UNTRUSTED, "; ".join(lines))
            return
        if isinstance(event, Plan | Untrusted):
            worker.planned = True
            self._starts = 0
            known = self._known.get(worker.plugin_set, set())
            if isinstance(event, Untrusted) or not known <= {cell.key for cell in event.cells}:
                self._refused(
                    worker.plugin_set,
                    "a plugin or data file changed during the run, or a plugin plans other cells "
                    "each time it is imported. Finished cells are saved; run the same command to "
                    "continue with the changed files",
                )
        elif worker is not slot.worker or slot.group is None:
            return
        elif isinstance(event, Begun):
            slot.group.bases.update((record["key"], record) for record in event.records)
            if slot.spare is not None and not self._needed(slot.spare.plugin_set):
                slot.spare.close()
                slot.spare = None
        elif isinstance(event, Tick) and event.encoded is not None:
            self._sink.encoding(slot.keys[0], *event.encoded)
        elif isinstance(event, Tick):
            left = len(self._sink.missing(slot.group.keys)) if slot.group.alone else 1
            self._sink.progress(slot.keys[0], event.share / max(left, 1))
        elif isinstance(event, GroupDone):
            slot.spoilt = event.spoilt
        else:
            self._sink.take(event)

    # Ends.

    def _turn_ended(self, slot: Slot) -> None:
        group, slot.group = slot.group, None
        assert group is not None
        assert slot.worker is not None
        if group.wants:
            group.wants = group.wants[1:]
            # Those that no other worker has taken meanwhile.
            queued = {id(one) for one in self._queue}
            for one in slot.others:
                if id(one) in queued and one.plugin_set == slot.worker.plugin_set:
                    one.wants = one.wants[1:]
            slot.others = []
            self._queue.insert(0, group)
            return
        if slot.spoilt:
            # A method changed what the worker's later cells would use.
            slot.drop()
        self._write_off(group, slot.keys, SILENT, "its worker reported no result for it")
        if self._sink.missing(group.keys):
            self._queue.insert(0, group)

    def _died(self, slot: Slot, worker: Worker, error: WorkerDiedError) -> None:
        if worker is slot.spare:
            slot.spare = None
            worker.close()
            self._false_start(worker, error)
            return
        slot.drop()
        if slot.group is None:
            self._false_start(worker, error)
        else:
            self._cell_failed(slot, DIED, str(error), bool(worker.over))

    def _cell_failed(self, slot: Slot, kind: str, message: str, over: bool = False) -> None:
        """A worker ended within a turn: what becomes of the turn's cells, and of the group. over:
        whether it was ended before it began."""
        group, slot.group = slot.group, None
        assert group is not None
        if group.wants:
            # Its own worker encodes what is missing.
            group.wants = []
            self._queue.insert(0, group)
            return
        missing = self._sink.missing(slot.keys)
        if missing and missing[0] not in group.bases:
            # Nothing of the cells was run yet.
            group.unbegun += 1
            if group.unbegun == MOST_STARTS or over:
                if not group.plugins:
                    raise UsageError(f"workers end before they start: {message}")
                self._sink.leave_out(group.keys, f"workers end before they start: {message}")
                return
        elif kind == TIMEOUT and not group.alone:
            self._write_off(group, missing, kind, message)
        elif len(slot.keys) > 1:
            # One cell may have ended the worker; the others must not suffer for it.
            group.alone = True
        else:
            group.deaths += 1
            self._write_off(group, missing, kind, message)
            if group.deaths == MOST_DEATHS:
                reason = f"not tried, since {group.deaths} cells of its group failed: {message}"
                self._write_off(group, group.keys, NOT_TRIED, reason)
        if self._sink.missing(group.keys):
            self._queue.insert(0, group)

    def _write_off(self, group: Group, keys: Sequence[str], kind: str, message: str) -> None:
        for key in self._sink.missing(keys):
            self._sink.write_off(group.bases[key], kind, message)
        self._sink.settle()

    # Limits.

    def _plans(self, slot: Slot, worker: Worker) -> bool:
        """Whether a worker has still to begin with its cells."""
        group = slot.group if worker is slot.worker else None
        begun = group is None or group.wants or slot.keys[0] in group.bases
        return not (worker.planned and begun)

    def _look_at_time(self, slot: Slot) -> None:
        assert slot.worker is not None
        idle = time.monotonic() - slot.worker.last
        # A spare takes some ten seconds to be ready.
        if idle > max(self._limit / 4, self._limit - 30) and slot.spare is None and self._spares:
            assert slot.group is not None
            again = slot.group.alone and len(self._sink.missing(slot.group.keys)) > 1
            coming = slot.group if again else self._choose_group(slot)
            slot.spare = self._started(slot, (coming or slot.group).plugin_set)
        if idle > self._limit:
            slot.drop()
            self._cell_failed(slot, TIMEOUT, f"no progress in {self._limit:g} s")

    def _look_at_memory(self) -> None:
        if time.monotonic() - self._looked < BEAT:
            return
        self._looked = time.monotonic()
        for slot in self._slots:
            for worker in (slot.worker, slot.spare):
                if worker is not None and not worker.over and self._plans(slot, worker):
                    worker.bound()
        used: list[Used] = []
        for slot in self._slots:
            for worker in (slot.worker, slot.spare):
                if worker is not None:
                    worker.bound_log()
                    used.append((worker.memory(), slot, worker))
        for taken, slot, worker in too_large(used):
            if worker is slot.spare:
                # There is no room for workers that wait.
                worker.close()
                slot.spare, self._spares = None, False
                continue
            error = WorkerDiedError(f"the worker process was ended, as {over_memory(taken)}")
            self._died(slot, worker, error)
