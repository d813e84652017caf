"""`vipbench tune`: equally many trials for every method, on validation alone, and the suite of the
settings that won."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vipbench import files
from vipbench.cli.exit_codes import FAILED, OK
from vipbench.cli.terminal import raw
from vipbench.engine.progress import reporter
from vipbench.engine.screen import Screen
from vipbench.engine.tuning import Searched, Tuned, judged, searched, with_ranges
from vipbench.engine.workers import driver
from vipbench.engine.workers.driver import Plan
from vipbench.errors import UsageError, printable, unknown
from vipbench.results import Record
from vipbench.results.records.metrics import METRICS
from vipbench.results.store.store import Store
from vipbench.runspec.run import PATHS_BY_DATASET, MethodSpec, RunSpec
from vipbench.runspec.yaml import format_scalar
from vipbench.text import columns, listed, plural

MARK = "# Chosen by `vipbench tune`"


@dataclass(frozen=True)
class Asked:
    """The options of `tune` that `run` lacks. trials: per method. output: the suite to write.
    metric: highest in the best trial. seed: of the draws. ranges: --range flags."""

    trials: int
    output: Path
    metric: str
    seed: int
    ranges: Sequence[str]
    dry_run: bool


def images_of(spec: RunSpec) -> str:
    """Which validation images the trials are scored on, in words."""
    if spec.validation == "full":
        return "the whole validation split"
    (k,) = spec.shots if len(spec.shots) == 1 else ("many",)
    count = str(spec.validation)
    if isinstance(k, int):
        count = str(k if spec.validation == "k" else min(k, 4))
    return f"{count} validation image{'' if count == '1' else 's'} per class"


def save_trials(out: Path, tuned: Sequence[Tuned], asked: Asked) -> None:
    """Write `trials.csv` into the trials' folder: fractions, not rounded."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "trial", "chosen", "metric", "mean", "sd", "cells", "settings"])
    for one in tuned:
        for score in one.scores:
            trial = score.trial
            writer.writerow(
                [
                    one.searched.row.label,
                    trial.number,
                    int(score is one.best),
                    asked.metric,
                    score.mean,
                    score.sd,
                    score.cells,
                    json.dumps({**trial.spec.hparams}),
                ]
            )
    files.make_folder(out)
    files.write(out / "trials.csv", printable(text.getvalue()))


def _chosen(one: Tuned, spec: RunSpec, metric: str) -> MethodSpec:
    """The row of the suite, and what tables say of it."""
    row = one.searched.row
    if not one.scores:
        return row.model_copy(update={"note": "nothing to tune: settings as given"})
    if one.best is None:
        return row.model_copy(update={"note": "tuning gave no number: settings as given"})
    note = (
        f"settings tuned: {plural(len(one.scores), 'trial')}, validation alone ({metric} on "
        f"{images_of(spec)})"
    )
    if not one.best.trial.changes:
        note += "; the settings as given won"
    hparams = one.best.trial.spec.hparams
    return MethodSpec(name=row.name, hparams=hparams, label=f"{row.label} (tuned)", note=note)


def save_suite(spec: RunSpec, asked: Asked, tuned: Sequence[Tuned]) -> None:
    """Write the suite of the chosen settings; its paths start at its own folder."""
    output = asked.output
    folder = output.parent
    title = f"{spec.title.rstrip('.')}; settings" if spec.title else "Settings"
    update: dict[str, Any] = {
        "methods": tuple(_chosen(one, spec, asked.metric) for one in tuned),
        "title": f"{title} tuned by {asked.trials} trials per method on {images_of(spec)} alone",
        "validation": "none",
        "out": Path(f"{output.stem}-results"),
    }
    for key in ("data_root", "plugins_dir"):
        if getattr(spec, key) is not None:
            update[key] = _beside(getattr(spec, key), folder)
    for key in PATHS_BY_DATASET:
        update[key] = {k: _beside(v, folder) for k, v in getattr(spec, key).items()}
    head = [
        f"{MARK}: {asked.trials} trials per method, the highest {asked.metric} over",
        f"# seeds {listed(spec.seeds)} on {images_of(spec)}; draw {asked.seed}.",
        "# No test image was read. validation is none, as it was inside the trials: what a method",
        "# would search on validation images by itself, it takes from its settings.",
    ]
    text = "\n".join([*head, spec.model_copy(update=update).to_yaml()])
    folder.mkdir(parents=True, exist_ok=True)
    files.write(output, text)


def _beside(path: Path, folder: Path) -> Path:
    """`path` as seen from the suite's folder."""
    return Path(os.path.relpath(str(path), str(folder)))


TRIALS_FOLDER = Path("vipbench-tuning")


def tune_command(spec: RunSpec, asked: Asked) -> int:
    """Run the trials that are missing, show all of them, save the suite; returns the exit status.
    Raises UsageError, StoreError."""
    _check(spec, asked)
    rows = _searched(spec, asked)
    for line in _plan_lines(spec, asked, rows):
        print(line)
    if asked.dry_run:
        return OK
    found: dict[str, Record] = {}
    keys: dict[str, list[str]] = {}
    failed = False
    if any(row.trials for row in rows):
        for trials in _runs(spec, rows):
            shown = reporter(raw(sys.stdout))
            screen = _Trials(trials, spec.methods, rows, shown)
            try:
                outcome = driver.run(trials, screen)
            finally:
                shown.stop()
            if outcome.signal is not None:
                message = f"Interrupted: finished trials saved in {trials.out}."
                print(f"vipbench: {message} Run the same command to resume.", file=sys.stderr)
                return 128 + outcome.signal
            failed = failed or bool(outcome.failed or outcome.broken)
            _gather(screen.plan, trials.out, keys, found)
    tuned = [judged(row, keys, found, asked.metric) for row in rows]
    for line in _result_lines(tuned, asked):
        print(line)
    save_trials(spec.out, tuned, asked)
    save_suite(spec, asked, tuned)
    print(f"\nSaved: {asked.output} (vipbench run {asked.output}), {spec.out / 'trials.csv'}")
    return FAILED if failed else OK


def trials_spec(spec: RunSpec, out_given: bool) -> RunSpec:
    """`spec` with the trials' folder for `out` where none is given."""
    return spec if out_given else spec.model_copy(update={"out": TRIALS_FOLDER})


def _check(spec: RunSpec, asked: Asked) -> None:
    if asked.trials < 2:
        raise UsageError(
            f"--trials {asked.trials}: expected 2 or more; the first trial takes the settings as "
            f"given"
        )
    if asked.metric not in METRICS:
        raise unknown("metric", asked.metric, METRICS)
    metric = METRICS[asked.metric]
    if metric.per_class or not metric.higher_better:
        raise UsageError(
            f"--metric {asked.metric}: tune maximises; choose a metric where higher is better"
        )
    if spec.score_on != "test":
        raise UsageError("tune sets score_on itself; give the number of images by --validation")
    if spec.validation == "none":
        raise UsageError(
            "--validation none leaves no images to choose by; give min(k,4), k or full"
        )
    if spec.selection != "last":
        raise UsageError(
            "--selection best_val: inside a trial no method sees validation images; tune 'epochs' "
            "instead (--range METHOD.epochs=10|50|100)"
        )
    if len(spec.knowledge) > 1:
        raise UsageError(f"knowledge: {listed(spec.knowledge)}; tune takes one kind at a time")
    for kind, names in spec.labels.items():
        raise UsageError(f"{kind}: {listed(names)}; tune takes one set of texts without a label")
    if spec.protocol.name != "few-shot":
        raise UsageError(
            f"protocol {spec.protocol.name}: settings are tuned under few-shot (--shots full for "
            "all training images), and then run under others"
        )
    if spec.profile == "published":
        raise UsageError("--profile published: tuned settings are not the papers'; leave it out")
    output = asked.output
    if output.exists() and not output.read_text("utf-8", "replace").startswith(MARK):
        raise UsageError(f"{output} exists and was not written by tune; give another --output")


def _searched(spec: RunSpec, asked: Asked) -> list[Searched]:
    entries = driver.catalogue(spec.plugins_dir)
    details: dict[str, dict[str, Any]] = {e.name: e.detail for e in entries if e.kind == "method"}
    with_ranges(details, asked.ranges)
    rows = []
    for row in spec.methods:
        if row.name not in details:
            raise unknown("method", row.name, details)
        detail = details[row.name]
        if "val" in detail["needs"]:
            raise UsageError(
                f"'{row.name}' needs validation images in its training, and a trial has none; "
                "leave it out"
            )
        defaults = {name: description["default"] for name, description in detail["hparams"].items()}
        rows.append(searched(row, detail["tunes"], defaults, asked.trials, asked.seed))
    return rows


def _runs(spec: RunSpec, rows: Sequence[Searched]) -> list[RunSpec]:
    """The trials as runs: one for each number of shots, each with validation images of its own
    number."""
    methods = tuple(trial.spec for row in rows for trial in row.trials)
    runs = []
    for k in spec.shots:
        out = spec.out
        if len(spec.shots) > 1:
            out /= f"{k}-shots"
            files.make_folder(out)
        update = {
            "methods": methods,
            "shots": (k,),
            "out": out,
            "validation": "none",
            "score_on": f"val:{spec.validation}",
            "title": f"Trials of settings; {images_of(spec)} in the test split's place",
        }
        runs.append(spec.model_copy(update=update))
    return runs


class _Trials(Screen):
    """A run of trials; impossible cells are reported once per row."""

    def __init__(
        self, spec: RunSpec, methods: tuple[MethodSpec, ...], rows: Sequence[Searched], shown: Any
    ) -> None:
        tried = {row.row.label for row in rows if row.trials}
        kept = tuple(method for method in methods if method.label in tried)
        super().__init__(spec.model_copy(update={"methods": kept}), shown)
        self.labels = {row.trials[0].spec.label for row in rows if row.trials}

    def planned(self, plan: Plan) -> None:
        """See Screen."""
        kept = [c for c in plan.cells if c.status != "impossible" or c.method in self.labels]
        super().planned(plan.model_copy(update={"cells": kept}))
        self.plan = plan


def _gather(plan: Plan, out: Path, keys: dict[str, list[str]], found: dict[str, Record]) -> None:
    with Store(out, readonly=True) as store:
        for cell in plan.cells:
            if cell.status == "impossible":
                continue
            keys.setdefault(cell.method, []).append(cell.key)
            record = store.record(cell.key)
            if record is not None:
                found[cell.key] = record


def _ranges(row: Searched) -> str:
    parts = []
    for name, where in row.space.items():
        if "values" in where:
            parts.append(f"{name} {' | '.join(format_scalar(v) for v in where['values'])}")
        else:
            low, high = (f"{where[end]:g}" for end in ("low", "high"))
            parts.append(f"{name} {low} to {high}{' (log)' if where['log'] else ''}")
    return listed(parts)


def _plan_lines(spec: RunSpec, asked: Asked, rows: Sequence[Searched]) -> list[str]:
    lines = [
        f"{asked.trials} trials of each method, scored on {images_of(spec)}, the same for all; the "
        "test split is not read"
    ]
    for row in rows:
        if not row.trials:
            lines.append(f"  {row.row.label}: nothing to tune, settings as given")
            continue
        few = "" if len(row.trials) == asked.trials else ", all possible ones"
        lines.append(f"  {row.row.label}: {plural(len(row.trials), 'trial')}{few}: {_ranges(row)}")
        if asked.dry_run:
            lines += [f"    {trial.number:>3}  {trial.settings_text}" for trial in row.trials]
    return lines


def _result_lines(tuned: Sequence[Tuned], asked: Asked) -> list[str]:
    lines = []
    for one in tuned:
        if not one.scores:
            continue
        rows: list[Sequence[object]] = [("", "trial", f"validation {asked.metric} (%)", "settings")]
        for score in one.scores:
            mean = "-"
            if score.mean is not None:
                mean = f"{100 * score.mean:.2f}"
                mean += f" ± {100 * score.sd:.2f}" if score.sd is not None else ""
            elif score.planned:
                mean = f"- ({score.cells} of {score.planned} cells have a number)"
            mark = "*" if score is one.best else ""
            rows.append((mark, score.trial.number, mean, score.trial.settings_text))
        lines += ["", f"{one.searched.row.label} (mean ± sd over seeds; *: chosen)"]
        lines += [f"  {line}" for line in columns(rows)]
    return lines
