"""A whole run on an executor: cut, submitted, followed, collected."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from vipbench import trust
from vipbench.engine.cluster import executors, slurm
from vipbench.engine.cluster.collect import Collector
from vipbench.engine.cluster.folder import Parts, paced
from vipbench.engine.cluster.follow import Follower
from vipbench.engine.cluster.prepare import prepare
from vipbench.engine.progress import Reporter
from vipbench.engine.workers.driver import Outcome, Plan, Signal, stop_signals
from vipbench.engine.workers.plan import NOT_AGAIN
from vipbench.errors import UsageError
from vipbench.files import write
from vipbench.results.records.plan import PlannedCell
from vipbench.results.records.record import Record
from vipbench.results.store.lock import StoreError
from vipbench.results.store.store import FILE, Store
from vipbench.runspec.executor import ExecutorSpec
from vipbench.runspec.run import SUITE_NAME, RunSpec
from vipbench.text import clean, plural


def run_parts(
    spec: RunSpec,
    shown: Reporter,
    retry: bool = True,
    submit_only: bool = False,
    imported: bool = False,
    own_process: bool = True,
) -> tuple[Outcome, Plan]:
    """Run `spec` on its executor and collect until all parts are done; returns what it came to and
    the cells. submit_only: return once all parts are submitted, with an empty plan. imported:
    whether results that others submitted count as done. Raises UsageError, StoreError, OSError.
    """
    assert spec.executor is not None
    parts = Parts(spec.out)
    say = shown.line
    for text in spec.executor.code:
        what = f"`{text}`, a command of the run's executor,"
        trust.require(what, text, [(text, trust.sha256(text.encode()))])
    with Store(spec.out) as store:
        before = store.status(imported)
        run = prepare(parts, spec, store, _limits(spec.executor), say, _alive(parts), imported)
        if spec.executor.name == "slurm":
            _write_script(parts, spec.executor, run)
        spec.save()
        retried = [key for key, status in before.items() if status == "error"] if retry else []
        executor = executors.make(parts, spec.executor, run["id"])
        if submit_only and not executor.resubmits:
            raise UsageError(
                f"--submit-only: jobs of '{spec.executor.name}' stop when this command exits"
            )
        progress = _Progress(shown)
        collector = Collector(
            parts,
            store,
            note=lambda text: say(f"note: {clean(text)}"),
            arrived=progress.take,
            imported=imported,
        )
        cancelled = parts.cancelled
        (parts.folder / "cancelled").unlink(missing_ok=True)
        try:
            with stop_signals(own_process) as stopped:
                follower = Follower(parts, executor, collector, say, retried, stopped)
                progress.follower = follower
                left = follower.start(cancelled)
                job = next((o.job.job for o in follower.watched.values() if o.job), "")
                if submit_only:
                    new = sum(one.starts for one in follower.watched.values())
                    what = f"submitted as job {job}" if new else "nothing was submitted: "
                    if not new:
                        what += f"its jobs are active ({job})" if left else "all cells are done"
                    say(f"{what}. To see the state, and to collect results:")
                    say(f"  vipbench status {spec.out}")
                    say(f"  vipbench collect {spec.out} --follow")
                    return Outcome(0, 0, 0, 0), Plan()
                if left:
                    progress.start()
                while follower.waiting() and not stopped():
                    follower.step()
                    time.sleep(paced(0.5))
                if follower.waiting():
                    ends = f"Jobs continue. `vipbench cancel {spec.out}` cancels them."
                    say(ends if executor.resubmits else "Running parts stop with this command.")
                elif left:
                    follower.step()
                cells = collector.save_plan(spec)
        finally:
            executor.close()
        return _ended(follower, collector, before, cells, retry, stopped, say)


def _ended(
    follower: Follower,
    collector: Collector,
    before: dict[str, str],
    cells: list[PlannedCell],
    retry: bool,
    stopped: Signal,
    say: Callable[[str], None],
) -> tuple[Outcome, Plan]:
    statuses, new = collector.statuses, collector.new
    judged = []
    for cell in cells:
        status, reason = cell.status, cell.reason
        if status != "impossible":
            kept = statuses.get(cell.key)
            status = "done" if kept is not None and cell.key not in new else "todo"
            reason = NOT_AGAIN if status == "done" and kept == "error" else None
        judged.append(cell.model_copy(update={"status": status, "reason": reason}))
    lines = [line for n in follower.watched for line in follower.parts.legs(n).broken]
    broken = list(dict.fromkeys(lines))
    if not stopped():
        broken += [f"{line}; see `vipbench status`" for line in follower.unfinished()]
    if collector.twice:
        count = plural(len(collector.twice), "cell")
        say(f"note: {count} computed twice with different scores; the first result stays")
    failed = sum(statuses[key] != "ok" for key in new)
    plan = Plan(cells=judged, broken=broken)
    outcome = Outcome(
        done=len(new) - failed,
        failed=failed,
        skipped=len(plan.of("done")),
        impossible=len(plan.of("impossible")),
        signal=stopped.number if follower.waiting() else None,
        broken=bool(broken),
    )
    return outcome, plan


class _Progress:
    """How many cells have a result."""

    def __init__(self, shown: Reporter) -> None:
        self._shown = shown
        self.follower: Follower | None = None
        self._failed = 0

    def start(self) -> None:
        """The parts are submitted."""
        assert self.follower is not None
        self._shown.start(sum(part.cells for part in self.follower.parts.parts().values()))
        self._show()

    def take(self, record: Record) -> None:
        """A new result is in the store."""
        if record.error is not None:
            self._failed += 1
            why = f"{record.error.type}: {record.error.message}"
            self._shown.line(clean(f"failed: {record.cell.words()}: {why}"))
        self._show()

    def _show(self) -> None:
        if self.follower is not None:
            states = [one.state for one in self.follower.watched.values()]
            now = f"{states.count('running')} of {plural(len(states), 'part')} running"
            self._shown.update(len(self.follower.collector.statuses), 0.0, self._failed, now)


def _alive(parts: Parts) -> bool:
    """Whether jobs of an earlier command may be alive."""
    if not parts.there:
        return False
    run = parts.run()
    if run["executor"]["name"] != "slurm" or not parts.submissions() or parts.copied_from():
        return False
    spec = ExecutorSpec.model_validate(run["executor"])
    jobs = slurm.Slurm(parts, spec, f"vipbench-{run['id']}").jobs()
    return jobs is None or any(job.alive for job in jobs.values())


def _limits(spec: ExecutorSpec) -> slurm.Limits:
    if spec.name != "slurm":
        return slurm.Limits()
    try:
        return slurm.limits()
    except slurm.SlurmError as error:
        raise UsageError(f"--executor slurm: {error}") from None


def _write_script(parts: Parts, spec: ExecutorSpec, run: dict[str, Any]) -> str:
    numbers = [one["number"] for one in run["parts"]]
    text = slurm.script(parts, f"vipbench-{run['id']}", spec, numbers, run["cwd"])
    write(parts.folder / slurm.SCRIPT, text)
    return text


def print_script(spec: RunSpec, say: Callable[[str], None], imported: bool = False) -> str:
    """The batch script of a run; the parts are cut, and nothing is submitted. say: receives lines.
    imported: as of `run_parts`. Raises UsageError."""
    assert spec.executor is not None
    if spec.executor.name != "slurm":
        raise UsageError("--print-script needs --executor slurm")
    parts = Parts(spec.out)
    with Store(spec.out) as store:
        # Without Slurm on this machine, another scheduler gets the parts.
        limits = slurm.Limits()
        with suppress(UsageError):
            limits = _limits(spec.executor)
        alive = _alive(parts)
        run = prepare(parts, spec, store, limits, say, alive, imported)
        if not alive:
            errors = [key for key, status in store.status().items() if status == "error"]
            Collector(parts, store, imported=imported).note_done(errors)
        return _write_script(parts, spec.executor, run)


def cancel(out: Path) -> int:
    """End all jobs of a run, and keep them ended; returns how many parts it has. Raises
    UsageError."""
    parts = Parts(out)
    run = parts.run()
    if first := parts.copied_from():
        raise UsageError(
            f"{parts.out} is a copy of {first} and has no jobs; `vipbench cancel {first}` cancels "
            "those of the original"
        )
    write(parts.folder / "cancelled", "")
    if run["executor"]["name"] == "slurm":
        spec = ExecutorSpec.model_validate(run["executor"])
        slurm.Slurm(parts, spec, f"vipbench-{run['id']}").cancel()
    return len(run["parts"])


def collect(out: Path, say: Callable[[str], None]) -> Collector:
    """Take what has arrived into the store. Raises UsageError, StoreError where another process
    has it."""
    parts = Parts(out)
    imported = parts.run().get("imported") is True
    with Store(out) as store:
        collector = Collector(parts, store, say, imported=imported)
        collector.collect(parts.parts())
        suite = parts.out / SUITE_NAME
        if suite.exists():  # the command that made the parts may have been killed before
            collector.save_plan(RunSpec.from_yaml(suite))
        # Errors that were not noted as done are tried again.
        noted, kept = parts.done(), collector.statuses
        retried = {k for k, s in kept.items() if s == "error"} - noted.keys() - collector.new
        ended = [n for n in parts.parts() if parts.legs(n).end == "done"]
        collector.remove([n for n in ended if collector.complete(n, retried)], retried)
        return collector


def collect_if_free(out: Path) -> None:
    """`collect` where there are parts and no process has the store."""
    parts = Parts(out)
    if parts.there and (out / FILE).exists():
        with suppress(StoreError, UsageError, OSError):
            collect(out, lambda text: None)
