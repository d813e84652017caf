"""The driver: it plans, hands groups of cells to a worker process, and alone writes the store.

No torch here: a plugin that hangs, exits or is killed takes a worker with it, never the driver.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vipbench.engine.changes import Stored
from vipbench.engine.outcome import (
    CatalogueEntry,
    Estimate,
    Observer,
    Outcome,
    Plan,
    PlannedCell,
)
from vipbench.engine.process import Stopped, Worker, WorkerDiedError, WorkerTimeoutError
from vipbench.engine.signals import Signal, stop_signals
from vipbench.errors import UsageError
from vipbench.results import Predictions, Record
from vipbench.results.store import Store
from vipbench.spec import RunSpec

__all__ = [
    "CatalogueEntry",
    "Estimate",
    "Observer",
    "Outcome",
    "Plan",
    "PlannedCell",
    "catalogue",
    "estimate",
    "plan",
    "run",
]

# After so many of a group's cells ended a worker each, the rest are written off untried.
MOST_DEATHS = 2
DIED, TIMEOUT = "WorkerDied", "Timeout"


def catalogue(plugins_dir: Path | None = None, count: bool = False) -> list[CatalogueEntry]:
    """Everything registered; `count` adds the trainable parameters (see `counting`). UsageError."""
    with Worker() as worker:
        folder = None if plugins_dir is None else str(plugins_dir)
        event = _answer(worker, "catalogue", plugins_dir=folder, count=count)
    return [CatalogueEntry(**entry) for entry in event["entries"]]


def plan(spec: RunSpec, retry: bool = True) -> Plan:
    """The cells of `spec` and, of each, whether it is done. Writes nothing. Raises UsageError.

    retry: whether cells that failed before are to be done again.
    """
    with Worker() as worker:
        return _plan(worker, spec, Stored.read(spec.out), retry)


def estimate(spec: RunSpec, retry: bool = True) -> tuple[Plan, list[Estimate]]:
    """The plan, and what each group of its cells that are to do will take, measured by a few steps
    and encodings. Writes nothing. Raises UsageError."""
    with Worker() as worker:
        planned = _plan(worker, spec, Stored.read(spec.out), retry)
        found = []
        for keys in planned.groups():
            event = _answer(worker, "estimate", keys=keys)
            found.append(Estimate(**{k: v for k, v in event.items() if k != "event"}))
        return planned, found


def run(
    spec: RunSpec,
    observer: Observer | None = None,
    retry: bool = True,
    only: Collection[str] | None = None,
) -> Outcome:
    """Run what is missing of `spec` into `spec.out`. Raises UsageError before anything runs.

    retry: whether cells that failed before are tried again. only: the keys of the cells to run.
    SIGINT and SIGTERM stop it: what is finished is kept, and `Outcome.signal` says so. A second
    one ends the process at once.
    """
    with stop_signals() as stopped:
        driver = _Driver(spec, observer or Observer(), stopped, retry)
        try:
            driver.run(only)
        except Stopped:
            driver.rescue()
        finally:
            driver.close()
        return replace(driver.outcome, signal=stopped.number)


class _Driver:
    """One run in progress."""

    def __init__(
        self, spec: RunSpec, observer: Observer, stopped: Signal, retry: bool = True
    ) -> None:
        self.spec = spec
        self.observer = observer
        self.stopped = stopped
        self.retry = retry
        self.worker: Worker | None = None
        # Started while a cell is about to run into its limit, so that the next need not wait.
        self.spare: Worker | None = None
        self.store: Store | None = None
        self.cells: dict[str, PlannedCell] = {}
        self.ended: set[str] = set()  # cells that have a record of this run
        self.outcome = Outcome(0, 0, 0, 0)

    def run(self, only: Collection[str] | None) -> None:
        planned = _plan(self._worker(), self.spec, Stored.read(self.spec.out), self.retry)
        self.cells = {cell.key: cell for cell in planned.cells}
        self.outcome = replace(
            self.outcome,
            skipped=len(planned.of("done")),
            impossible=len(planned.of("impossible")),
        )
        self.observer.planned(planned)
        if only is not None:
            planned = replace(planned, cells=[c for c in planned.cells if c.key in only])
        self.store = Store(self.spec.out)
        self.spec.save()
        self.store.save_plan([cell.as_dict() for cell in planned.cells])
        for keys in planned.groups():
            self._run_group(keys)

    def _run_group(self, keys: Sequence[str]) -> None:
        try:
            self._attempt(keys)
        except WorkerTimeoutError as error:
            self._write_off(self._missing(keys), TIMEOUT, str(error))
        except WorkerDiedError as error:
            if len(keys) == 1:
                self._write_off(self._missing(keys), DIED, str(error))
            else:
                self._one_by_one(self._missing(keys))

    def _one_by_one(self, keys: Sequence[str]) -> None:
        # One cell may have ended the worker; the others must not suffer for it.
        deaths = 0
        for key in keys:
            try:
                self._attempt([key])
            except (WorkerDiedError, WorkerTimeoutError) as error:
                deaths += 1
                kind = TIMEOUT if isinstance(error, WorkerTimeoutError) else DIED
                self._write_off(self._missing([key]), kind, str(error))
                if deaths == MOST_DEATHS:
                    told = f"not tried, since {deaths} cells of its group failed so: {error}"
                    self._write_off(self._missing(keys), "NotTried", told)
                    return

    def _attempt(self, keys: Sequence[str]) -> None:
        label, spoilt = self.cells[keys[0]].method, False
        try:
            worker = self._worker()
            worker.send("run", keys=list(keys))
            for event in worker.answers(self.spec.cell_timeout, self._prepare_spare):
                if event["event"] == "tick":
                    self.observer.progress(label, event["share"])
                else:
                    self._take(event)
                    spoilt = spoilt or event.get("spoilt", False)
        except (WorkerDiedError, WorkerTimeoutError):
            self._drop_worker()
            raise
        if spoilt:
            # A method changed what the worker's later cells would use.
            self._drop_worker()

    def _take(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "done":
            learned = event.get("parameters")
            self._keep(
                Record.of(event["record"]),
                _predictions(event["predictions"]),
                None if learned is None else base64.b64decode(learned),
            )
        elif event["event"] == "note":
            self.observer.note(event["text"])
        elif event["event"] == "usage_error":
            raise UsageError(event["message"])

    def _keep(
        self, record: Record, predictions: Predictions | None, parameters: bytes | None = None
    ) -> None:
        assert self.store is not None
        self.store.add(record, predictions, parameters)
        self.ended.add(record.key)
        done, failed = (1, 0) if record.ok else (0, 1)
        self.outcome = replace(
            self.outcome, done=self.outcome.done + done, failed=self.outcome.failed + failed
        )
        self.observer.cell_done(self.cells[record.key], record)

    def _missing(self, keys: Sequence[str]) -> list[str]:
        return [key for key in keys if key not in self.ended]

    def _write_off(self, keys: Sequence[str], kind: str, message: str) -> None:
        """Error records for cells whose worker is gone; a new one tells what is known of them."""
        if not keys:
            return
        base = _answer(self._worker(), "base", keys=list(keys))["records"]
        for part in base:
            cell = self.cells[part["key"]]
            error = {
                "type": kind,
                "message": f"plugin '{cell.plugin}' ({cell.file}): {message}",
                "traceback": None,
                "plugin": cell.plugin,
                "file": cell.file,
            }
            self._keep(Record.of({**part, "status": "error", "error": error}), None)

    def _worker(self) -> Worker:
        if self.worker is None:
            if self.cells:
                self._prepare_spare()
                assert self.spare is not None
                self.worker, self.spare = self.spare, None
                _last(self.worker.answers())
            else:
                self.worker = Worker(self.stopped)
        return self.worker

    def _prepare_spare(self) -> None:
        if self.spare is None:
            self.spare = Worker(self.stopped)
            self.spare.send("plan", suite=self.spec.to_yaml())

    def _drop_worker(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None

    def rescue(self) -> None:
        """Keep the finished cells that had arrived when the run was stopped."""
        if self.worker is not None and self.store is not None:
            for event in self.worker.pending():
                self._take(event)

    def close(self) -> None:
        """End the worker, close the store."""
        self._drop_worker()
        if self.spare is not None:
            self.spare.close()
        if self.store is not None:
            self.store.close()


def _plan(worker: Worker, spec: RunSpec, stored: Stored | None = None, retry: bool = True) -> Plan:
    event = _answer(worker, "plan", suite=spec.to_yaml())
    stored = stored or Stored()
    cells = [stored.judge(PlannedCell(**item), retry) for item in event["cells"]]
    return Plan(cells, event["notices"], event["info"])


def _answer(worker: Worker, do: str, **arguments: Any) -> dict[str, Any]:
    return _last(worker.ask(do, **arguments))


def _last(events: Iterator[dict[str, Any]]) -> dict[str, Any]:
    answer: dict[str, Any] | None = None
    try:
        for event in events:
            if event["event"] == "usage_error":
                raise UsageError(event["message"])
            answer = event
    except WorkerDiedError as error:
        raise UsageError(f"planning failed: {error}") from error
    assert answer is not None
    return answer


def _predictions(event: Mapping[str, Any] | None) -> Predictions | None:
    if event is None:
        return None
    raw = zlib.decompress(base64.b64decode(event["scores"]))
    return Predictions(
        ids=event["ids"],
        groups=event["groups"],
        labels=np.asarray(event["labels"], dtype=np.int64),
        scores=np.frombuffer(raw, dtype=np.float32).reshape(event["shape"]),
    )
