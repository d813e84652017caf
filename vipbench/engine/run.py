"""Running a grid: one path for the command line, scripts and notebooks. No torch is imported."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from vipbench import trust
from vipbench.engine.arguments import Backbones, Datasets, Fields, Methods, Several, spec_of
from vipbench.engine.cluster.run import run_parts
from vipbench.engine.progress import Quiet, Reporter, reporter_here
from vipbench.engine.screen import WORDS, Screen, broken_lines, require_possible
from vipbench.engine.tracking import Tracking, check
from vipbench.engine.workers import driver
from vipbench.engine.workers.driver import Outcome, Plan
from vipbench.errors import UsageError
from vipbench.fetching import offline
from vipbench.results.outputs import save_outputs, save_tables
from vipbench.results.tables import TableError
from vipbench.runspec.run import SUITE_NAME, RunSpec
from vipbench.text import plural

if TYPE_CHECKING:
    from pandas import DataFrame

    from vipbench.results.results import Results

PLAN_COLUMNS = ("state", "key", "method", "backbone", "dataset", "shots", "seed", "reason")


@dataclass(frozen=True)
class Finished:
    """What a run came to, and what it wrote. table: as text, "" where there is none. files: names
    in `out`. complaints: why a table or figure was not written."""

    out: Path
    outcome: Outcome
    plan: Plan
    table: str = ""
    files: tuple[str, ...] = ()
    complaints: tuple[str, ...] = ()

    def interrupted(self) -> str:
        """What is saved of a run that a signal ended."""
        if not self.plan.cells:
            return "Interrupted before any cell ran."
        kept = plural(self.outcome.done + self.outcome.skipped, "finished cell")
        left = len(self.plan.of("todo")) - self.outcome.done
        return f"Interrupted: {kept} saved in {self.out}, {left:,} remaining."


def perform(
    spec: RunSpec,
    screen: Screen,
    retry: bool = True,
    imported: bool = False,
    own_process: bool = True,
    submit_only: bool = False,
) -> Finished:
    """Run what is missing of `spec`, and write its tables and figures; see `driver.run`, and
    `run_parts` where it names an executor. Raises UsageError, StoreError, OSError."""
    with Tracking(spec, screen) as observer:
        if spec.executor is None:
            outcome = driver.run(spec, observer, retry, imported=imported, own_process=own_process)
        else:
            outcome, screen.plan = run_parts(
                spec,
                screen.shown,
                retry=retry,
                submit_only=submit_only,
                imported=imported,
                own_process=own_process,
            )
            require_possible(screen.plan)
            observer.write_done(screen.plan)
    screen.shown.stop()
    if outcome.signal is not None or submit_only:
        return Finished(spec.out, outcome, screen.plan)
    try:
        table = save_tables(spec.out, spec.title)
    except TableError as error:
        complaint = f"the records cannot be shown in one table: {error}"
        return Finished(spec.out, outcome, screen.plan, complaints=(complaint,))
    made, refused = save_outputs(spec)
    files = ("table.md", "table.tex", "results.csv", *made, SUITE_NAME)
    return Finished(spec.out, outcome, screen.plan, table, files, tuple(refused))


def run(
    methods: Methods | None = None,
    datasets: Datasets | None = None,
    backbones: Backbones | None = None,
    shots: Several[int | str] | None = None,
    seeds: Several[int] | str | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    retry: bool = True,
    use_imported: bool = False,
    quiet: bool = False,
    **fields: Unpack[Fields],
) -> Results:
    """Run a grid, as `vipbench run` does; cells that are done in `out` are not run again.

    methods, datasets, backbones: a name as on the command line, or a list of such; a method is also
        `{"name": ..., "label": ..., HPARAM: VALUE}`, and its name a Method class, see
        docs/python.md. A dataset is also `{NAME: DATA}`, with DATA as `vipbench.data` takes or
        gives it; it is written into `out`/data. Where none of the three is given the bundled demo
        runs. shots: images per class (N) or "full". seeds: of support sets and training.
    out: the results folder, "vipbench-results" by default. Relative paths start at the working
        directory.
    retry: whether cells that failed before are tried again. use_imported: whether imported
        results count as done. quiet: show no progress and no notes. fields: the other keys of a
        suite (docs/cli.md), such as `protocol="base-to-new"` or `device="cpu"`.

    Returns the cells that this call asked for, done before or now. A failed cell raises nothing:
    see `Results.failed`. Raises UsageError where the run cannot be made as asked, StoreError for a
    damaged results folder, OSError where `out` cannot be written. An interrupt saves the finished
    cells and raises KeyboardInterrupt.
    """
    offline.obey()
    with trust.refusals():
        grid: dict[str, Any] = {"methods": methods, "datasets": datasets, "backbones": backbones}
        given = {**grid, "shots": shots, "seeds": seeds, "out": out, **fields}
        spec = spec_of(given)
        if spec.out.exists() and not spec.out.is_dir():
            raise UsageError(f"out: '{spec.out}' is a file; give another folder for the results")
        shown: Reporter = Quiet() if quiet else reporter_here()
        screen = Screen(spec, shown, settings=False)
        try:
            finished = perform(spec, screen, retry, use_imported, own_process=False)
        finally:
            shown.stop()
    if finished.outcome.signal is not None:
        shown.line(f"{finished.interrupted()} The same call resumes.")
        raise KeyboardInterrupt
    _refuse_nothing(finished.plan)
    # Here, since it imports pandas, for which the command line would wait.
    from vipbench.results.results import Results

    # As it was saved: its paths hold from any working directory.
    suite = RunSpec.from_yaml(spec.out / SUITE_NAME)
    results = Results(spec.out, finished.plan.cells, suite)
    lines = list(finished.complaints)
    if failed := len(results.failed):
        lines.append(f"note: {plural(failed, 'cell')} failed; `.failed` of the result lists them")
    for line in lines:
        shown.line(line)
    return results


def plan(
    methods: Methods | None = None,
    datasets: Datasets | None = None,
    backbones: Backbones | None = None,
    shots: Several[int | str] | None = None,
    seeds: Several[int] | str | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    retry: bool = True,
    use_imported: bool = False,
    **fields: Unpack[Fields],
) -> DataFrame:
    """The cells that `run` with these arguments has, as `vipbench run --dry-run` lists them.
    Nothing is run or written into `out`.

    Returns a row per cell: `state` ("to do", "done" or "impossible"), `key` ("" where an impossible
    cell has none), `method`, `backbone`, `dataset`, `shots` (0: zero-shot), `seed`, and `reason`,
    why it is impossible or runs again, or "". Raises UsageError, StoreError.
    """
    import pandas as pd

    offline.obey()
    with trust.refusals(), tempfile.TemporaryDirectory(prefix="vipbench-plan-") as folder:
        grid: dict[str, Any] = {"methods": methods, "datasets": datasets, "backbones": backbones}
        given = {**grid, "shots": shots, "seeds": seeds, "out": out, **fields}
        spec = spec_of(given, Path(folder))
        check(spec)
        found = driver.plan(spec, retry, use_imported)
    _refuse_nothing(found)
    rows: list[tuple[Any, ...]] = [
        (WORDS[c.status], c.key, c.method, c.backbone, c.dataset, c.shots, c.seed, c.reason or "")
        for c in found.cells
    ]
    return pd.DataFrame(rows, columns=list(PLAN_COLUMNS))


def _refuse_nothing(plan: Plan) -> None:
    """Raise UsageError where every cell was left out."""
    if not plan.cells:
        raise UsageError("; ".join(broken_lines(plan)) or "these arguments select no cells")
