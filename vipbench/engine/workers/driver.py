"""The driver: it plans, hands groups of cells to workers, and alone writes the store.

Workers compute: a plugin that hangs, exits or is killed ends a worker, never the driver."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from vipbench.engine import kept
from vipbench.engine.workers import kept_plans
from vipbench.engine.workers.messages import (
    Catalogue,
    CatalogueEntry,
    Done,
    EncodeCells,
    Encoding,
    Estimate,
    Estimated,
    Event,
    GroupDone,
    ListPlugins,
    MakeEstimate,
    MakePlan,
    Note,
    Plan,
    Tick,
)
from vipbench.engine.workers.plan import Keeper, Observer, Outcome, Results, Stored
from vipbench.engine.workers.planners import Planners
from vipbench.engine.workers.pool import Group, Pool
from vipbench.engine.workers.process import PlannedOtherwiseError, Stopped, Worker, WorkerDiedError
from vipbench.errors import UsageError
from vipbench.plugins.files import every_source, plugin_files, require_code
from vipbench.results import Predictions, Record
from vipbench.results.records.plan import PlannedCell
from vipbench.results.records.recompute import key_problems
from vipbench.results.store.store import Store
from vipbench.runspec.run import RunSpec

# What one cell brought: record, predictions, and a safetensors file of what was learned.
Taken = tuple[Record, Predictions | None, bytes | None]
# The most bytes of scores that wait for the rest of their stack.
MOST_TAKEN = 64 * 1024**2
ALTERED = "AlteredRecord"


@dataclass
class Signal:
    """The signal that arrived, and whether one did."""

    number: int | None = None

    def __call__(self) -> bool:
        """Whether the run is to stop."""
        return self.number is not None


@contextmanager
def stop_signals(own_process: bool = True) -> Iterator[Signal]:
    """Turn the first SIGINT or SIGTERM into a flag; a second one ends the process, or, where it is
    a script's or notebook's, raises KeyboardInterrupt."""
    stopped = Signal()

    def handle(number: int, frame: FrameType | None) -> None:
        if stopped.number is not None:
            if not own_process:
                raise KeyboardInterrupt
            # The worker ends by itself when its pipe closes with this process.
            os._exit(128 + number)
        stopped.number = number

    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


__all__ = [
    "CatalogueEntry",
    "Estimate",
    "Observer",
    "Outcome",
    "Plan",
    "PlannedCell",
    "catalogue",
    "encode",
    "estimate",
    "plan",
    "run",
]


def catalogue(plugins_dir: Path | None = None, count: bool = False) -> list[CatalogueEntry]:
    """Everything registered; `count` adds the trainable parameters (see `counting`). UsageError."""
    _require(plugins_dir)
    # Importing all methods takes seconds. What plugins import is their own.
    builtin = plugins_dir is None and not every_source(None)
    name, state = f"catalogue-{'counted' if count else 'plain'}.json", ""
    if builtin:
        state = kept.state_of_code()
        found = kept.load(name, state)
        if found is not None:
            return [CatalogueEntry(**entry) for entry in found]
    folder = None if plugins_dir is None else str(plugins_dir)
    with Worker() as worker:
        try:
            command = ListPlugins(plugins_dir=folder, count=count)
            entries = worker.ask(command, Catalogue).entries
        except WorkerDiedError as error:
            raise UsageError(f"planning failed: {error}") from error
    if builtin:
        kept.keep(name, state, [asdict(entry) for entry in entries])
    return list(entries)


def plan(spec: RunSpec, retry: bool = True, imported: bool = False) -> Plan:
    """The cells of `spec` and, of each, whether it is done. Writes nothing. Raises UsageError.

    retry: whether cells that failed before are to be done again. imported: whether results that
    others submitted count as done.
    """
    _require(spec.plugins_dir)
    kept_plan = kept_plans.find(spec)
    if kept_plan is not None:
        return _judged(kept_plan, spec, retry, imported)
    with Planners(spec) as planners:
        return _judged(_made(planners, spec), spec, retry, imported)


# Seconds in which `estimate` measures.
MEASURING = 60.0


def estimate(
    spec: RunSpec,
    retry: bool = True,
    imported: bool = False,
    planned: Callable[[Plan], None] = lambda plan: None,
    measured: Callable[[Estimate], None] = lambda one: None,
) -> tuple[Plan, list[Estimate]]:
    """The plan, and what each group of its cells that are to do will take, measured by a few steps
    and encodings, in MEASURING seconds after planning. Writes nothing. Raises UsageError.

    planned, measured: called with the plan, and with each estimate when it is made. A group that
    there was no time for has no `work_seconds`.
    """
    _require(spec.plugins_dir)
    until: list[float] = []
    with Planners(spec, lambda: bool(until) and time.monotonic() > until[0]) as planners:
        plan = _judged(_made(planners, spec), spec, retry, imported)
        planned(plan)
        cells = {cell.key: cell for cell in plan.cells}
        found: list[Estimate] = []
        groups = plan.groups()
        until.append(time.monotonic() + MEASURING)
        for number, keys in enumerate(groups):
            left = until[0] - time.monotonic()
            seconds = max(left, 0.0) * 0.8 / (len(groups) - number)
            command = MakeEstimate(keys=tuple(keys), seconds=seconds)
            first = cells[keys[0]]
            try:
                if left <= 0:
                    raise Stopped
                one = planners.ask(first.plugins, command, Estimated).estimate
            except Stopped:
                note = f"not measured within {MEASURING:g} s"
                one = Estimate(group=first.method, cells=len(keys), note=note)
            found.append(one)
            measured(one)
        return plan, found


def run(
    spec: RunSpec,
    observer: Observer | None = None,
    retry: bool = True,
    only: Collection[str] | None = None,
    imported: bool = False,
    own_process: bool = True,
    results: Results | None = None,
    stopped: Signal | None = None,
) -> Outcome:
    """Run what is missing of `spec` into `spec.out`. Raises UsageError before anything runs.

    retry: whether cells that failed before are tried again. only: the keys of the cells to run.
    imported: whether results that others submitted count as done. results: receives the results
    instead of the folder's store, and says what is done. stopped: says when the run is to
    stop; no signal is handled then.
    SIGINT and SIGTERM stop it: what is finished is kept, and `Outcome.signal` says so. A second
    one ends the process at once, or raises KeyboardInterrupt where it is not the command line's
    own_process.
    """
    _require(spec.plugins_dir)
    with stop_signals(own_process) if stopped is None else nullcontext(stopped) as stopped:
        driver = _Driver(spec, observer or Observer(), stopped, retry, imported, results)
        try:
            driver.run(only)
        except Stopped:
            driver.pool.rescue()
        finally:
            driver.close()
        return replace(driver.outcome, signal=stopped.number)


def encode(spec: RunSpec, observer: Observer, stopped: Signal) -> Outcome:
    """Encode the images that the cells of `spec` read, for whoever runs them; no cell is run. What
    cannot be encoded is reported by the cells that read it. Raises UsageError."""
    _require(spec.plugins_dir)
    keys: dict[frozenset[str], list[str]] = {}
    wants: dict[frozenset[str], list[Encoding]] = {}
    with suppress(Stopped), Planners(spec, stopped) as planners, ExitStack() as held:
        plan = _made(planners, spec)
        observer.planned(plan)
        cells = {cell.key: cell for cell in plan.cells}
        for group in plan.groups():
            plugin_set = frozenset(cells[group[0]].plugins)
            keys.setdefault(plugin_set, []).extend(group)
            for want in planners.wants(plugin_set, group):
                wants.setdefault(frozenset(want.plugins), []).extend(want.encodings)
        free = {worker.plugin_set: worker for worker in planners.release({*keys, *wants})}
        for worker in free.values():
            held.callback(worker.close)
        # What serves most is encoded first; cells of plugins then find it.
        for plugin_set in sorted({*keys, *wants}, key=lambda found: (len(found), sorted(found))):
            own, others = keys.get(plugin_set, []), wants.get(plugin_set, [])
            worker = free.get(plugin_set) or held.enter_context(Worker(plugin_set))
            try:
                if not worker.planned:
                    command = MakePlan(spec=spec, plugins=tuple(sorted(plugin_set)))
                    worker.ask(command, Plan, stopped)
                first = cells[own[0]] if own else plan.cells[0]

                def show(event: Event, cell: PlannedCell = first) -> None:
                    if isinstance(event, Tick) and event.encoded is not None:
                        observer.encoding(cell, *event.encoded)
                    elif isinstance(event, Note):
                        observer.note(event.text)

                asked = EncodeCells(keys=tuple(own), encodings=tuple(others))
                worker.ask(asked, GroupDone, stopped, show)
            except (UsageError, WorkerDiedError) as error:
                observer.note(f"not encoded ahead: {error}")
            worker.close()
    return Outcome(0, 0, 0, 0, signal=stopped.number)


def _require(plugins_dir: Path | None) -> None:
    """Ask before a worker is started; the worker itself asks for all that it meets."""
    if plugins_dir is not None:
        require_code(plugin_files(plugins_dir), plugins_dir)


class _Driver:
    """One run in progress; receives the results of its pool."""

    def __init__(
        self,
        spec: RunSpec,
        observer: Observer,
        stopped: Signal,
        retry: bool = True,
        imported: bool = False,
        results: Results | None = None,
    ) -> None:
        self.spec = spec
        self.observer = observer
        self.retry, self.imported = retry, imported
        self.stopped = stopped
        self.results = results
        self.pool = Pool(spec, self, stopped)
        self.store: Keeper | None = None
        self.cells: dict[str, PlannedCell] = {}
        self.ended: set[str] = set()  # cells that have a record of this run
        self.taken: list[Taken] = []  # of these, what is not in the store yet
        self.size = 0  # of their scores, in bytes
        self.broken: list[str] = []  # see Plan
        self.outcome = Outcome(0, 0, 0, 0)

    def run(self, only: Collection[str] | None) -> None:
        try:
            self._work(only)
        except PlannedOtherwiseError as error:
            self.pool.close()
            self.pool = Pool(self.spec, self, self.stopped, again=True)
            self._work(only, error)

    def _work(
        self, only: Collection[str] | None, error: PlannedOtherwiseError | None = None
    ) -> None:
        with Planners(self.spec, self.stopped) as planners:
            groups, workers = self._begin(planners, only, error)
        self.pool.work(groups, workers)

    def _begin(
        self,
        planners: Planners,
        only: Collection[str] | None,
        error: PlannedOtherwiseError | None,
    ) -> tuple[list[Group], int]:
        """What is to be run, and by how many workers; the pool has taken those that it can use.

        error: why the plan that all plugins gave together does not hold; raised where built-in
        cells are others now, as files were changed.
        """
        plan = kept_plans.find(self.spec)
        planned = plan and self._judged(plan)
        if not plan or not planned or planned.of("todo"):
            # A worker that is to run cells plans them itself.
            plan = _made(planners, self.spec)
            if error is not None:
                builtin = {key for key, cell in self.cells.items() if not cell.plugins}
                if builtin != {cell.key for cell in plan.cells if not cell.plugins}:
                    raise error
                if {cell.key for cell in plan.cells} == {*self.cells}:
                    plan = planners.apart(joint=plan)
            planned = self._judged(plan)
        self.cells = {cell.key: cell for cell in planned.cells}
        self.outcome = replace(
            self.outcome,
            done=0,
            skipped=len(planned.of("done")),
            impossible=len(planned.of("impossible")),
            broken=bool(planned.broken),
        )
        self.broken = planned.broken
        self.observer.planned(planned)
        if only is not None:
            chosen = [cell for cell in planned.cells if cell.key in only]
            planned = planned.model_copy(update={"cells": chosen})
        if self.store is None:
            self.store = self.results or Store(self.spec.out)
        if self.results is None:
            self.spec.save()
        self.store.save_plan(planned.cells)
        groups = []
        for group in planned.groups():
            if not (keys := self.missing(group)):
                continue
            cell = self.cells[keys[0]]
            wants = planners.wants(cell.plugins, keys)
            pair = cell.backbone, cell.dataset
            groups.append(Group(keys, pair, frozenset(cell.plugins), wants))
        self.pool.start(planners, plan)
        return groups, int(planned.info["workers"])

    def take(self, event: Event) -> None:
        """See Sink."""
        if isinstance(event, Done):
            record = event.record
            if record.key in self.ended or record.key not in self.cells:
                return  # sent by a plugin, or by a copy of its worker
            if event.predictions is not None:
                predicted = {"prediction_hash": event.predictions.prediction_hash}
                provenance = {**record.provenance, **predicted}
                record = record.model_copy(update={"provenance": provenance})
            if self.cells[record.key].plugins and (problems := key_problems(record)):
                # A method can change what its backbone says of itself, and so on.
                scored = ("metrics", "timing", "history")
                base = {k: v for k, v in record.to_dict().items() if k not in scored}
                base["provenance"] = {k: v for k, v in record.provenance.items() if k != "backbone"}
                self.write_off(base, ALTERED, f"its record was altered: {'; '.join(problems)}")
            else:
                self._keep(record, event.predictions, event.parameters)
            if not event.left or self.size > MOST_TAKEN:
                self.settle()
        elif isinstance(event, Note):
            self.observer.note(event.text)

    def write_off(self, base: Mapping[str, Any], kind: str, message: str) -> None:
        """See Sink."""
        cell = self.cells[base["key"]]
        error = {
            "type": kind,
            "message": f"plugin '{cell.plugin}' ({cell.file}): {message}",
            "traceback": None,
            "plugin": cell.plugin,
            "file": cell.file,
        }
        now = datetime.now(UTC).isoformat(timespec="seconds")
        fields = {**base, "status": "error", "error": error, "created": now}
        self._keep(Record.of(fields), None)

    def leave_out(self, keys: Sequence[str], message: str) -> None:
        """See Sink."""
        missing = self.missing(keys)
        if missing:
            cell = self.cells[missing[0]]
            methods = ", ".join(dict.fromkeys(self.cells[key].method for key in missing))
            self.broken.append(
                f"left out, the cells of {methods}, plugin '{cell.plugin}' ({cell.file}): {message}"
            )
            self.observer.note(self.broken[-1])
            self.outcome = replace(self.outcome, broken=True)

    def missing(self, keys: Sequence[str]) -> list[str]:
        """See Sink."""
        return [key for key in keys if key not in self.ended]

    def progress(self, key: str, share: float) -> None:
        """See Sink."""
        self.observer.progress(self.cells[key], share)

    def encoding(self, key: str, done: int, total: int) -> None:
        """See Sink."""
        self.observer.encoding(self.cells[key], done, total)

    def _keep(
        self, record: Record, predictions: Predictions | None, parameters: bytes | None = None
    ) -> None:
        self.taken.append((record, predictions, parameters))
        self.size += predictions.scores.nbytes if predictions is not None else 0
        self.ended.add(record.key)

    def settle(self) -> None:
        """See Sink."""
        taken, self.taken, self.size = self.taken, [], 0
        if not taken:
            return
        assert self.store is not None
        parameters = {record.key: found for record, _, found in taken if found is not None}
        self.store.add_many([(record, predictions) for record, predictions, _ in taken], parameters)
        for record, _, _ in taken:
            done, failed = (1, 0) if record.ok else (0, 1)
            self.outcome = replace(
                self.outcome, done=self.outcome.done + done, failed=self.outcome.failed + failed
            )
            self.observer.cell_done(self.cells[record.key], record)

    def _judged(self, plan: Plan) -> Plan:
        if self.results is None:
            return _judged(plan, self.spec, self.retry, self.imported)
        return plan.model_copy(update={"cells": [self.results.judge(c) for c in plan.cells]})

    def close(self) -> None:
        """End the workers, keep what they had sent, close the store."""
        self.pool.close()
        try:
            self.settle()
        finally:
            if self.store is not None:
                self.store.close()


def _made(planners: Planners, spec: RunSpec) -> Plan:
    """A new plan, kept for later commands."""
    started = time.time_ns()
    made = planners.plan()
    kept_plans.keep(spec, made, started)
    return made


def _judged(plan: Plan, spec: RunSpec, retry: bool, imported: bool) -> Plan:
    stored = Stored.read(spec.out)
    cells = [stored.judge(cell, retry, imported) for cell in plan.cells]
    return plan.model_copy(update={"cells": cells})
