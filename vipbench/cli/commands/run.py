"""`vipbench run`: say what will be done, do it, show the table."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from vipbench import __version__
from vipbench.cli.commands.outputs import save_outputs
from vipbench.cli.commands.progress import Reporter, reporter
from vipbench.cli.commands.table import save_tables
from vipbench.cli.commands.text import clean, columns, duration, listed, plural, ranges, shots_text
from vipbench.cli.exit_codes import FAILED, OK
from vipbench.engine.workers import driver
from vipbench.engine.workers.driver import Observer, Outcome, Plan, PlannedCell
from vipbench.engine.workers.messages import Estimate
from vipbench.engine.workers.plan import NOT_AGAIN
from vipbench.errors import UsageError
from vipbench.fetching.download import size
from vipbench.results.records.record import Record
from vipbench.results.tables import TableError
from vipbench.runspec.run import SUITE_NAME, RunSpec


def estimate_lines(found: Sequence[Estimate]) -> list[str]:
    """A table of the groups, and the sums."""
    if not found:
        return ["Nothing is to do: no time, no further disk."]
    rows: list[Sequence[object]] = [("row", "cells", "encoding", "training and scoring", "note")]
    for one in found:
        work = "?" if one.work_seconds is None else duration(one.work_seconds)
        rows.append((one.group, one.cells, duration(one.encode_seconds), work, clean(one.note)))
    known = [one for one in found if one.work_seconds is not None]
    time = sum(one.encode_seconds + (one.work_seconds or 0.0) for one in found)
    more = "" if len(known) == len(found) else ", and the rows marked ?"
    return [
        "",
        "To expect, from a few steps and encodings measured now on this machine:",
        *columns(rows),
        f"time    {duration(time)}{more}",
        f"disk    {size(sum(one.cache_bytes for one in found))} in the feature cache, "
        f"{size(sum(one.result_bytes for one in found))} in the results folder",
        f"memory  {size(max(one.memory_bytes for one in found))}",
    ]


# Reasons to run cells again that are listed one by one.
MOST_REASONS = 6
WORDS = {"todo": "to do", "done": "done", "impossible": "impossible"}


def run_command(
    spec: RunSpec,
    dry_run: bool = False,
    retry: bool = True,
    estimate: bool = False,
    imported: bool = False,
) -> int:
    """Run `spec`, or list its cells; returns the exit status. Raises UsageError, StoreError.

    retry: whether cells that failed before are tried again. estimate: with `dry_run`, what the
    run will take. imported: whether results that somebody handed in count as done.
    """
    if estimate and not dry_run:
        raise UsageError("--estimate goes with --dry-run")
    shown = reporter()
    try:
        if dry_run:
            planned, estimates = (
                driver.estimate(spec, retry, imported)
                if estimate
                else (driver.plan(spec, retry, imported), None)
            )
            _show_plan(spec, planned, shown)
            for line in [] if estimates is None else estimate_lines(estimates):
                shown.line(line)
            return FAILED if planned.broken else OK
        screen = Screen(spec, shown)
        outcome = driver.run(spec, screen, retry, imported=imported)
    finally:
        shown.stop()
    return _finish(spec, screen, outcome)


class Screen(Observer):
    """Shows a run while it goes on."""

    def __init__(self, spec: RunSpec, shown: Reporter) -> None:
        self.spec = spec
        self.shown = shown
        self.plan = Plan()
        self.done = self.failed = 0
        self._waiting: dict[str, set[str]] = {}  # group -> its cells that are not yet done
        self._shares: dict[str, tuple[str, float]] = {}  # group in work -> its row, how far it is

    def planned(self, plan: Plan) -> None:
        """The settings, what cannot be run and why, and the bar."""
        self.plan = plan
        self.done = self.failed = 0
        self._waiting.clear()
        todo, done, impossible = (plan.of(status) for status in WORDS)
        if plan.cells and not todo and not done:
            raise UsageError(
                f"none of the {plural(len(plan.cells), 'cell')} can be run: "
                f"{listed(_grouped(impossible)[:3])}"
            )
        lines = [*_settings(self.spec, plan), *_grouped(impossible), *_notices(plan), *_again(todo)]
        lines += _broken(plan)
        for line in lines:
            self.shown.line(line)
        for cell in todo:
            self._waiting.setdefault(cell.group, set()).add(cell.key)
        if todo:
            self.shown.start(len(todo))

    def cell_done(self, cell: PlannedCell, record: Record) -> None:
        """Count it; a failure gets a line."""
        waiting = self._waiting.get(cell.group, set())
        waiting.discard(cell.key)
        self._shares[cell.group] = (cell.method, 0.0)
        self.done += 1
        if record.error is not None:
            self.failed += 1
            self.shown.line(f"failed: {_name(cell)}: {_why(record)}")
        self._show()
        if not waiting:
            del self._shares[cell.group]

    def progress(self, cell: PlannedCell, share: float) -> None:
        """Part of a group in work is done."""
        self._shares[cell.group] = (cell.method, share)
        self._show()

    def _show(self) -> None:
        begun = sum(
            share * len(self._waiting.get(group, ())) for group, (_, share) in self._shares.items()
        )
        now = listed(dict.fromkeys(clean(row) for row, _ in self._shares.values()))
        self.shown.update(self.done, begun, self.failed, now)

    def note(self, text: str) -> None:
        """A line."""
        self.shown.line(f"note: {clean(text)}")


def _finish(spec: RunSpec, screen: Screen, outcome: Outcome) -> int:
    if outcome.signal is not None:
        message = "Interrupted before any cell ran."
        if screen.plan.cells:
            kept = plural(outcome.done + outcome.skipped, "finished cell")
            left = len(screen.plan.of("todo")) - outcome.done
            message = (
                f"Interrupted: {kept} saved in {spec.out}, {left:,} remaining. "
                "Run the same command to resume."
            )
        print(f"vipbench: {message}", file=sys.stderr)
        return 128 + outcome.signal
    left = sum(cell.reason == NOT_AGAIN for cell in screen.plan.of("done"))
    if not screen.plan.of("todo"):
        done = outcome.skipped - left
        print(f"Nothing to do: {plural(done, 'cell')} {_are(done)} done.")
    try:
        print(f"\n{save_tables(spec.out, spec.title)}\n")
        made = ["table.md", "table.tex", "results.csv", *save_outputs(spec), SUITE_NAME]
        print(f"Saved in {spec.out}: {', '.join(made)}")
    except TableError as error:
        print(f"vipbench: the records cannot stand in one table: {error}", file=sys.stderr)
    if left:
        print(
            f"vipbench: {plural(left, 'cell')} failed before and {_are(left)} not tried again "
            "(--no-retry)",
            file=sys.stderr,
        )
    if outcome.failed:
        print(
            f"vipbench: {plural(outcome.failed, 'cell')} failed, as named above; the same command "
            "tries again",
            file=sys.stderr,
        )
    for line in _broken(screen.plan):
        print(f"vipbench: {line}", file=sys.stderr)
    return FAILED if outcome.failed or outcome.broken or left else OK


def _show_plan(spec: RunSpec, plan: Plan, shown: Reporter) -> None:
    for line in [*_settings(spec, plan), *_notices(plan), *_broken(plan), ""]:
        shown.line(line)
    rows = [("state", "key", "method", "backbone", "dataset", "shots", "seed", "reason")]
    for cell in plan.cells:
        seed = "-" if cell.shots == cell.seed == 0 else str(cell.seed)
        place = (cell.method, cell.backbone, cell.dataset, str(cell.shots), seed)
        rows.append((WORDS[cell.status], cell.key[:8], *place, cell.reason or ""))
    for line in columns(rows):
        shown.line(line)
    shown.line(f"\nNothing was run. Cells: {_counts(plan)}")


def _settings(spec: RunSpec, plan: Plan) -> list[str]:
    """What the run takes for granted, before it starts."""
    methods = [
        f"{method.label} ({method.plain})" if method.own_label else method.label
        for method in spec.methods
    ]
    published = spec.profile == "published"
    rows = [
        ("methods", listed(methods)),
        ("datasets", listed(spec.datasets)),
        ("backbones", listed(spec.backbones)),
        *([("protocol", spec.protocol.as_text())] if spec.protocol.name != "few-shot" else []),
        ("shots", f"{listed(spec.shots)} ({_unit(spec)})"),
        ("seeds", ranges(spec.seeds)),
        ("profile", spec.profile),
        ("views", spec.views),
        ("sampler", spec.sampler),
        ("validation", "each paper's own" if published else spec.validation),
        ("selection", "each paper's own" if published else spec.selection),
        ("precision", spec.precision),
        *([("features", spec.feature_precision)] if spec.feature_precision != "fp32" else []),
        ("device", plan.info.get("device", spec.device)),
        ("workers", plan.info.get("workers", spec.workers)),
        ("output", spec.out),
    ]
    if spec.allow_group_overlap:
        rows.append(("groups", "may cross splits"))
    if spec.data_root is not None:
        rows.append(("data root", spec.data_root))
    if spec.symptoms:
        rows.append(("symptoms", listed(f"{k}={v}" for k, v in spec.symptoms.items())))
    if spec.descriptions:
        rows.append(("named texts", listed(f"{k}={v}" for k, v in spec.descriptions.items())))
    if spec.score_on != "test":
        rows.append(("scored on", f"{spec.score_on}, not the test split"))
    if spec.plugins_dir is not None:
        rows.append(("plugins", spec.plugins_dir))
    rows.append(("cells", _counts(plan)))
    head = [f"vipbench {__version__}", *([spec.title] if spec.title else [])]
    return [*head, *(f"  {name:<11} {clean(str(value))}" for name, value in rows)]


def _unit(spec: RunSpec) -> str:
    if spec.protocol.name == "imbalanced":
        return "images per class on average"
    return f"{spec.shots_unit}s of each class"


def _counts(plan: Plan) -> str:
    counts = {status: len(plan.of(status)) for status in WORDS}
    shown = listed(f"{counts[s]:,} {WORDS[s]}" for s in WORDS if counts[s] or s == "todo")
    return shown if len(plan.cells) == counts["todo"] else f"{len(plan.cells):,}: {shown}"


def _notices(plan: Plan) -> list[str]:
    return [f"note: {clean(notice)}" for notice in plan.notices]


def _broken(plan: Plan) -> list[str]:
    return [f"failed: {clean(sentence)}" for sentence in plan.broken]


def _again(todo: Iterable[PlannedCell]) -> list[str]:
    """Why cells that have a result are run, one line for each reason."""
    groups: dict[str, list[PlannedCell]] = {}
    for cell in todo:
        if cell.reason:
            groups.setdefault(cell.reason, []).append(cell)
    lines = [
        f"again: {plural(len(members), 'cell')} of "
        f"{listed(dict.fromkeys(cell.method for cell in members))}: {clean(reason)}"
        for reason, members in groups.items()
    ]
    more = len(lines) - MOST_REASONS
    if more > 0:
        lines[MOST_REASONS:] = [f"again: {plural(more, 'more reason')}, see --dry-run"]
    return lines


def _grouped(cells: Iterable[PlannedCell]) -> list[str]:
    """Impossible cells, one line for those that share row, backbone and reason."""
    groups: dict[tuple[str, ...], list[PlannedCell]] = {}
    for cell in cells:
        key = (cell.method, cell.backbone, cell.reason or "")
        groups.setdefault(key, []).append(cell)
    lines = []
    for (method, backbone, reason), members in groups.items():
        dataset = listed(dict.fromkeys(cell.dataset for cell in members))
        shots = listed(dict.fromkeys(shots_text(cell.shots) for cell in members))
        lines.append(
            f"impossible: {method} on {dataset} with {backbone}, {shots} "
            f"({plural(len(members), 'cell')}): {clean(reason)}"
        )
    return lines


def _name(cell: PlannedCell) -> str:
    seed = "" if cell.shots == cell.seed == 0 else f", seed {cell.seed}"
    return f"{cell.method} on {cell.dataset} with {cell.backbone}, {shots_text(cell.shots)}{seed}"


def _why(record: Record) -> str:
    error = record.error
    assert error is not None
    text = error.message
    if not text.startswith(("plugin ", error.type)):
        text = f"{error.type}: {text}"
    if error.plugin and f"'{error.plugin}'" not in text:
        text += f" (plugin '{error.plugin}'{f', {error.file}' if error.file else ''})"
    return clean(text)


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
