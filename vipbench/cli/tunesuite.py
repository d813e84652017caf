"""What `vipbench tune` leaves: the numbers of all trials, and the suite of the best ones."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vipbench.cli.text import listed, plural
from vipbench.engine.tuning import Tuned
from vipbench.spec import TEXT_FILES, MethodSpec, RunSpec

MARK = "# Chosen by `vipbench tune`"


@dataclass(frozen=True)
class Asked:
    """What `vipbench tune` was told beside the run. trials: of each method. output: the suite to
    write. metric: what is highest in the best trial. seed: of the draws. ranges: --range flags."""

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
    return f"{count} validation image{'' if count == '1' else 's'} a class"


def save_trials(out: Path, tuned: Sequence[Tuned], asked: Asked) -> None:
    """Write `trials.csv` into the trials' folder: fractions, not rounded."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "trial", "chosen", "metric", "mean", "sd", "cells", "settings"])
    for one in tuned:
        for score in one.scores:
            trial = score.trial
            writer.writerow(
                [one.searched.row.label, trial.number, int(score is one.best), asked.metric,
                 score.mean, score.sd, score.cells, json.dumps({**trial.spec.hparams})]
            )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    (out / "trials.csv").write_text(text.getvalue(), encoding="utf-8")


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
        "title": f"{title} tuned by {asked.trials} trials a method on {images_of(spec)} alone",
        "validation": "none",
        "out": Path(f"{output.stem}-results"),
    }
    for key in ("data_root", "plugins_dir"):
        if getattr(spec, key) is not None:
            update[key] = _beside(getattr(spec, key), folder)
    for key in TEXT_FILES:
        update[key] = {k: _beside(v, folder) for k, v in getattr(spec, key).items()}
    head = [
        f"{MARK}: {asked.trials} trials a method, the highest {asked.metric} over",
        f"# seeds {listed(spec.seeds)} on {images_of(spec)}; draw {asked.seed}.",
        "# No test image was read. validation is none, as it was inside the trials: what a method",
        "# would search on validation images by itself, it takes from its settings.",
    ]
    text = "\n".join([*head, spec.model_copy(update=update).to_yaml()])
    folder.mkdir(parents=True, exist_ok=True)
    part = output.with_name(f"{output.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(output)


def _beside(path: Path, folder: Path) -> Path:
    """`path` as seen from the suite's folder."""
    return Path(os.path.relpath(str(path), str(folder)))
