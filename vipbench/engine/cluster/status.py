"""How far a run on a cluster is: for each part and for all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from vipbench.engine.cluster import sealed
from vipbench.engine.cluster.folder import TIME_LIMIT, EncodePart, Legs, Parts
from vipbench.engine.cluster.queue import Job
from vipbench.engine.cluster.run import collect
from vipbench.engine.cluster.slurm import Slurm
from vipbench.results.store.lock import StoreError
from vipbench.results.store.store import FILE, Store
from vipbench.runspec.executor import ExecutorSpec
from vipbench.text import duration, plural

DONE, ERRORS, RUNNING = 0, 1, 3

# A job of a batch system whose processes are just being ended.
ENDING = "COMPLETING"


@dataclass(frozen=True)
class PartStatus:
    """One part. cells: how many it has, at most where it was not planned yet. todo: those without
    a result."""

    part: int
    state: str
    cells: int
    done: int
    failed: int
    leg: int
    node: str
    reason: str
    log: str

    @property
    def todo(self) -> int:
        """How many cells have no result."""
        return self.cells - self.done - self.failed


@dataclass(frozen=True)
class RunStatus:
    """All parts. restarts, lost: legs that were cut short and begun again, and seconds from the
    last sign of life of each to the next one's beginning. time_limits: legs that ended by
    themselves when their time was over, and were continued. left: seconds, None where nothing
    tells. gpu_hours: of all legs.
    errors: message -> how many cells have it. logs: message -> the log of a part that has it.
    broken: what plugins were left out, in sentences. encodes: of each pair of backbone and dataset
    that is encoded for several parts number, state, node and log."""

    parts: list[PartStatus]
    encodes: list[dict[str, Any]] = field(default_factory=list)
    restarts: int = 0
    lost: float = 0.0
    time_limits: int = 0
    left: float | None = None
    gpu_hours: float = 0.0
    errors: dict[str, int] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def count(self, state: str) -> int:
        """How many parts are in a state."""
        return sum(part.state == state for part in self.parts)

    @property
    def code(self) -> int:
        """The exit status: DONE, ERRORS, or RUNNING."""
        if self.count("running") or self.count("waiting"):
            return RUNNING
        failed = self.broken or any(p.failed or p.state != "done" for p in self.parts)
        return ERRORS if failed else DONE

    def line(self) -> str:
        """All of it in one line."""
        cells = sum(part.cells for part in self.parts)
        done = sum(part.done for part in self.parts)
        failed = sum(part.failed for part in self.parts)
        share = 100 * done // max(cells, 1)
        why = Counter(p.reason for p in self.parts if p.state == "waiting" and p.reason)
        reason = f" ({why.most_common(1)[0][0]})" if why else ""
        running = f"{self.count('running')} of {len(self.parts)} parts running"
        counts = [f"{done:,} of {cells:,} cells ({share} %)", running]
        counts += [f"{self.count('waiting')} waiting{reason}", f"{self.count('done')} done"]
        others = Counter(p.state for p in self.parts)
        for state in ("running", "waiting", "done"):
            others.pop(state, None)
        counts += [f"{number} {state}" for state, number in others.items()]
        found = [", ".join(counts)]
        found += [f"{failed} error{'s' if failed > 1 else ''}"] if failed else []
        if self.restarts:
            found.append(f"{plural(self.restarts, 'preemption')} cost {duration(self.lost)}")
        found += [plural(self.time_limits, "time limit")] if self.time_limits else []
        found += [f"left about {duration(self.left)}"] if self.left else []
        found += [f"{self.gpu_hours:,.0f} GPU h so far"] if self.gpu_hours >= 0.5 else []
        return "; ".join(found)

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        kept = {k: v for k, v in vars(self).items() if k != "parts"}
        return {
            "line": self.line(),
            "state": {DONE: "done", ERRORS: "errors", RUNNING: "running"}[self.code],
            **kept,
            "parts": [{**vars(part), "todo": part.todo} for part in self.parts],
        }


def status(out: Path) -> RunStatus:
    """What is known now, without a store that another process writes. Raises UsageError."""
    parts = Parts(out)
    run = parts.run()
    executor = ExecutorSpec.model_validate(run["executor"])
    jobs: dict[int, Job] | None = {}
    if executor.name == "slurm" and parts.copied_from() is None:
        jobs = Slurm(parts, executor, f"vipbench-{run['id']}").jobs()
    statuses, failed = _kept(parts)
    errors = Counter(failed.values())
    found, legs = [], []
    for number in parts.parts():
        one = parts.legs(number)
        legs.append(one)
        job = None if jobs is None else jobs.get(number)
        found.append(_part(parts, number, one, job, bool(jobs), statuses))
    encodes = [_encode(parts, one) for one in parts.encodes().values() if len(one.parts) > 1]
    legs += [parts.legs(one.name) for one in parts.encodes().values()]
    restarts, lost, limits, seconds = _legs(legs)
    busy = sum(part.done + part.failed for part in found)
    at_once = max(1, sum(part.state == "running" for part in found))
    todo = sum(part.todo for part in found)
    left = seconds / busy * todo / at_once if busy and todo else None
    broken = list(dict.fromkeys(line for one in legs for line in one.broken))
    hours = seconds * executor.all_gpus / 3600
    logs = {
        failed[key]: str(parts.file(part, ".log")) for part, key in _planned(parts) if key in failed
    }
    return RunStatus(
        parts=found,
        encodes=encodes,
        restarts=restarts,
        lost=lost,
        time_limits=limits,
        left=left,
        gpu_hours=hours,
        errors=dict(errors),
        logs=logs,
        broken=broken,
    )


def _planned(parts: Parts) -> Iterator[tuple[int, str]]:
    """Number and key of each cell that a part was planned to have."""
    for number in parts.parts():
        for cell in parts.plan(number) or []:
            yield number, cell.key


def _encode(parts: Parts, one: EncodePart) -> dict[str, Any]:
    legs = parts.legs(one.name)
    state = "not begun" if legs.last is None else legs.end or "running"
    log = str(parts.file(one.name, ".log"))
    return {
        "encode": one.number,
        "state": state,
        "node": str((legs.last or {}).get("node", "")),
        "log": log,
    }


def _kept(parts: Parts) -> tuple[dict[str, str], dict[str, str]]:
    """key -> status of all results, and key -> message of those that failed."""
    if (parts.out / FILE).exists():
        with suppress(StoreError):
            collector = collect(parts.out, lambda line: None)
            with Store(parts.out, readonly=True) as store:
                every = store.records(history=False)
            failed = {r.key: f"{r.error.type}: {r.error.message}" for r in every if r.error}
            return collector.statuses, failed
    statuses = parts.done()
    for number in parts.parts():
        for file in parts.batches(number):
            with suppress(OSError, sealed.DamagedError):
                statuses.update(sealed.read_head(file))
    return statuses, {}


def _part(
    parts: Parts, number: int, legs: Legs, job: Job | None, asked: bool, kept: dict[str, str]
) -> PartStatus:
    plan, part = parts.plan(number), parts.part(number)
    keys = None if plan is None else [c.key for c in plan if c.status != "impossible"]
    done = sum(kept.get(key) == "ok" for key in keys or ())
    failed = sum(kept.get(key) == "error" for key in keys or ())
    cells = part.cells if keys is None else len(keys)
    last = legs.last or {}
    if keys is not None and done + failed == cells:
        state = "done"
    elif job is not None and job.alive and not (parts.cancelled and job.state == ENDING):
        state = "running" if job.state in ("RUNNING", ENDING) else "waiting"
    elif not asked and legs.last is not None and legs.end is None:
        state = "running"
    elif legs.end in ("given up", "refused"):
        state = legs.end
    elif parts.cancelled or (job is not None and job.state.startswith("CANCELLED")):
        state = "cancelled"
    elif legs.last is None and job is None:
        state = "not begun"
    else:
        state = "left the queue"
    return PartStatus(
        part=number,
        state=state,
        cells=cells,
        done=done,
        failed=failed,
        leg=len(legs.begun),
        node=job.node if job is not None and job.node else str(last.get("node", "")),
        reason=job.reason if job is not None and state == "waiting" else "",
        log=str(parts.file(number, ".log")),
    )


def _legs(every: list[Legs]) -> tuple[int, float, int, float]:
    """How many legs were cut short, what that cost until the next one began, how many ended at the
    end of their time, and the seconds of all legs."""
    restarts, lost, limits, seconds = 0, 0.0, 0, 0.0
    for legs in every:
        for leg, after in zip_longest(legs.begun, legs.begun[1:]):
            seconds += leg["last"] - leg["at"]
            if after is None:
                continue
            # One that ended in another way was continued when a person gave the command again.
            if leg["end"] is None:
                restarts += 1
                lost += max(0.0, after["at"] - leg["last"])
            elif leg["end"]["status"] == TIME_LIMIT:
                limits += 1
    return restarts, lost, limits, seconds
