"""`vipbench tune`: what it chooses, from what, and the suite that comes of it."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

from vipbench.runspec.run import RunSpec

Cli = Callable[..., "CompletedProcess[str]"]
TUNE = (
    "tune", "--methods", "ss-text,clip-adapter[epochs=2],zero-shot", "--datasets", "npz:toy.npz",
    "--backbones", "tiny-clip", "--shots", "2", "--seeds", "1,2", "--views", "2",
)  # fmt: skip


def other_tests(folder: Path, toy: Path) -> None:
    """The toy data with other test images, and their labels the other way round."""
    arrays = dict(np.load(toy / "toy.npz"))
    arrays["test_labels"] = 1 - arrays["test_labels"]
    arrays["test_images"] = 255 - arrays["test_images"][:8]
    arrays["test_labels"] = arrays["test_labels"][:8]
    np.savez(folder / "toy.npz", **arrays)
    (folder / "toy.yaml").write_text((toy / "toy.yaml").read_text())


def test_the_choice_is_saved_resumes_runs_and_does_not_know_the_test_split(
    cli: Cli, toy: Path, tmp_path: Path
) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    for folder in (mine, other):
        folder.mkdir()
    (mine / "toy.npz").write_bytes((toy / "toy.npz").read_bytes())
    (mine / "toy.yaml").write_text((toy / "toy.yaml").read_text())
    other_tests(other, toy)

    few = cli(*TUNE, "--trials", "2", cwd=mine)
    assert few.returncode == 0, few.stderr
    assert "cells       8 to do" in few.stdout
    more = cli(*TUNE, "--trials", "3", cwd=mine)
    assert more.returncode == 0, more.stderr
    assert "cells       12: 4 to do, 8 done" in more.stdout
    assert "zero-shot: nothing" in more.stdout
    assert "val:min(k,4), not" in more.stdout
    with (mine / "vipbench-tuning" / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["1", "2", "3"] * 2
    for method in {row["method"] for row in rows}:
        own = [row for row in rows if row["method"] == method]
        chosen = [row for row in own if row["chosen"] == "1"]
        assert len(chosen) == 1
        assert float(chosen[0]["mean"]) == max(float(row["mean"]) for row in own)

    elsewhere = cli(*TUNE, "--trials", "3", cwd=other)
    assert elsewhere.returncode == 0, elsewhere.stderr
    suite = (mine / "tuned.yaml").read_text()
    assert (other / "tuned.yaml").read_text() == suite
    mean, trials = "mean", (other / "vipbench-tuning" / "trials.csv").open
    with trials() as file:
        assert [row[mean] for row in csv.DictReader(file)] == [row[mean] for row in rows]

    spec = RunSpec.from_yaml(mine / "tuned.yaml")
    assert suite.startswith("# Chosen by `vipbench tune`: 3 trials per method")
    assert (spec.validation, spec.score_on, spec.selection) == ("none", "test", "last")
    tuned = "3 trials per method on 2 validation images per class"
    assert spec.title == f"Settings tuned by {tuned} alone"
    labels = [method.label for method in spec.methods]
    assert labels == ["ss-text (tuned)", "clip-adapter[epochs=2] (tuned)", "zero-shot"]
    assert spec.methods[1].hparams["epochs"] == 2
    done = cli("run", "tuned.yaml", cwd=mine)
    assert done.returncode == 0, done.stderr
    assert (
        "Settings tuned by 3 trials per method on 2 validation images per class alone"
        in done.stdout
    )
    assert re.search(
        r"ss-text \(tuned\) and clip-adapter\[epochs=2\] \(tuned\): .*3 trials.*accuracy on 2 ",
        " ".join(done.stdout.split()),
    )
    assert "(20 test images, 2 classes)" not in done.stdout
    assert "10 test images" in done.stdout


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--trials", "1"], "--trials 1"),
        (["--validation", "none"], "min(k,4), k or full"),
        (["--profile", "published"], "--profile published"),
        (["--knowledge", "symptoms,useless"], "knowledge: symptoms, "),
        (["--metric", "ece"], "--metric ece"),
        (["-o", "mine.yaml"], "--output"),
    ],
)
def test_what_cannot_be_tuned_is_reported_at_once(
    cli: Cli, tmp_path: Path, args: list[str], expected: str
) -> None:
    (tmp_path / "mine.yaml").write_text("methods: [coop]\n")
    done = cli(*TUNE, *args, cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr
