"""`vipbench run`: what it prints, and its exit status."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vipbench.cli.exit_codes import FAILED, OK
from vipbench.cli.terminal import raw
from vipbench.engine.progress import Reporter, reporter
from vipbench.engine.run import Finished, perform
from vipbench.engine.screen import (
    WORDS,
    Screen,
    broken_lines,
    counts,
    notice_lines,
    settings_lines,
    text_lines,
)
from vipbench.engine.tracking import check
from vipbench.engine.workers import driver
from vipbench.engine.workers.driver import Plan
from vipbench.engine.workers.messages import Estimate
from vipbench.engine.workers.plan import NOT_AGAIN
from vipbench.errors import UsageError
from vipbench.fetching.download import size
from vipbench.runspec.run import RunSpec
from vipbench.text import clean, columns, duration, plural


def row_line(one: Estimate) -> str:
    """What one row will take."""
    work = "?" if one.work_seconds is None else duration(one.work_seconds)
    timed = f"{one.measured} of {plural(one.cells, 'cell')} timed"
    parts = [f"encoding {duration(one.encode_seconds)}", f"training and scoring {work}", timed]
    return f"{clean(one.group)}: {', '.join([*parts, *([clean(one.note)] if one.note else [])])}"


def sum_lines(found: Sequence[Estimate], spec: RunSpec) -> list[str]:
    """The sums over all rows, and what shortens the run."""
    if not found:
        return ["Nothing to do: no time and no disk space needed."]
    known = [one for one in found if one.work_seconds is not None]
    total = sum(one.encode_seconds + (one.work_seconds or 0.0) for one in found)
    more = "" if len(known) == len(found) else ", and the rows marked ?"
    lines = [
        f"time    {duration(total)}{more}",
        f"disk    {size(sum(one.cache_bytes for one in found))} in the feature cache, "
        f"{size(sum(one.result_bytes for one in found))} in the results folder",
        f"memory  {size(max(one.memory_bytes for one in found))}",
        "Each row is timed on its smallest cells and scaled to the others: expect a factor of two.",
    ]
    views, saved = (sum(getattr(one, f"{k}_seconds") for one in found) for k in ("view", "saved"))
    if saved > total / 20:
        lines.append(
            f"Encoding {spec.views} training views takes {duration(views)} of {duration(total)}; "
            f"`--views 8`: {duration(total - saved)} in all."
        )
    slowest = max(known, key=lambda one: one.work_seconds or 0.0, default=None)
    if slowest is not None and (slowest.work_seconds or 0.0) > total / 3 and len(found) > 1:
        lines.append(
            f"Training and scoring {clean(slowest.group)} takes "
            f"{duration(slowest.work_seconds or 0)} of it: fewer `--seeds` or `--shots` "
            "shorten it in proportion."
        )
    return lines


def run_command(
    spec: RunSpec,
    dry_run: bool = False,
    retry: bool = True,
    estimate: bool = False,
    imported: bool = False,
    submit_only: bool = False,
) -> int:
    """Run `spec`, or list its cells; returns the exit status. Raises UsageError, StoreError.

    retry: whether cells that failed before are tried again. estimate: with `dry_run`, what the
    run will take. imported: whether results that others submitted count as done. submit_only:
    whether to return once the parts are handed to the executor.
    """
    if estimate and not dry_run:
        raise UsageError("--estimate requires --dry-run")
    shown = reporter(raw(sys.stdout))
    try:
        if dry_run:
            check(spec)
            if not estimate:
                planned = driver.plan(spec, retry, imported)
                _show_plan(spec, planned, shown)
                return FAILED if planned.broken else OK

            def first(plan: Plan) -> None:
                _show_plan(spec, plan, shown)
                if plan.of("todo"):
                    shown.line("\nEstimate, measured now on this machine:")

            planned, estimates = driver.estimate(
                spec, retry, imported, first, lambda one: shown.line(row_line(one))
            )
            for line in sum_lines(estimates, spec):
                shown.line(line)
            return FAILED if planned.broken else OK
        finished = perform(spec, Screen(spec, shown), retry, imported, submit_only=submit_only)
    finally:
        shown.stop()
    if submit_only:
        return OK
    return _finish(finished)


def _finish(finished: Finished) -> int:
    outcome, plan = finished.outcome, finished.plan
    if outcome.signal is not None:
        again = f"{finished.interrupted()} Run the same command to resume."
        print(f"vipbench: {again if plan.cells else finished.interrupted()}", file=sys.stderr)
        return 128 + outcome.signal
    left = sum(cell.reason == NOT_AGAIN for cell in plan.of("done"))
    done = outcome.skipped - left
    if not plan.of("todo") and (done or not plan.broken):
        print(f"Nothing to do: {plural(done, 'cell')} {_are(done)} done.")
    if finished.table:
        print(f"\n{finished.table}\n")
        print(f"Saved in {finished.out}: {', '.join(finished.files)}")
    lines = list(finished.complaints)
    if left:
        lines.append(
            f"{plural(left, 'cell')} failed before and {_are(left)} not tried again (--no-retry)"
        )
    if outcome.failed:
        failed = plural(outcome.failed, "cell")
        lines.append(f"{failed} failed (see above); run the same command to retry")
    for line in (*lines, *broken_lines(plan)):
        print(f"vipbench: {line}", file=sys.stderr)
    return FAILED if outcome.failed or outcome.broken or left else OK


def _show_plan(spec: RunSpec, plan: Plan, shown: Reporter) -> None:
    for line in [
        *settings_lines(spec, plan),
        *text_lines(plan),
        *notice_lines(plan),
        *broken_lines(plan),
        "",
    ]:
        shown.line(line)
    rows = [("state", "key", "method", "backbone", "dataset", "shots", "seed", "reason")]
    for cell in plan.cells:
        seed = "-" if cell.shots == cell.seed == 0 else str(cell.seed)
        place = (cell.method, cell.backbone, cell.dataset, str(cell.shots), seed)
        rows.append((WORDS[cell.status], cell.key[:8], *place, cell.reason or ""))
    for line in columns(rows):
        shown.line(line)
    shown.line(f"\nNothing was run. Cells: {counts(plan)}")


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
