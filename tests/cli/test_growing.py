"""A results folder that is run into again: failures, and a plugin whose code changed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

from vipbench.results import Store

REPO = Path(__file__).resolve().parents[2]
Cli = Callable[..., "CompletedProcess[str]"]

MOODY = '''
"""Fails or not, as the file beside it says."""
import vipbench
from _moody_word import WORD
from vipbench import api

class Moody(api.Method):
    """Features as logits."""
    name = "moody"
    kind = "TF"
    needs = frozenset()

    def prepare(self, support):
        if WORD == "fail":
            raise RuntimeError("in a mood")

    def forward(self, x):
        return x[:, : self.task.n_classes]

@vipbench.hookimpl
def register_methods(register):
    register(Moody)
'''


def test_failed_and_changed_cells(cli: Cli, toy: Path, tmp_path: Path) -> None:
    (tmp_path / "moody.py").write_text(MOODY)
    word = tmp_path / "_moody_word.py"
    word.write_text("WORD = 'fail'")
    run = [
        *("run", "--methods", "moody", "--datasets", f"npz:{toy / 'toy.npz'}", "--shots", "1"),
        *("--backbones", "tiny-clip", "--views", "none", "--plugins-dir", tmp_path),
        *("--seeds", "1", "--out", tmp_path / "out"),
    ]
    assert cli(*run).returncode == 1
    left = cli(*run, "--no-retry")
    assert left.returncode == 1
    assert "0 cells" in left.stdout
    assert "(--no-retry)" in left.stderr
    word.write_text("WORD = 'work'")
    dry = cli(*run, "--dry-run").stdout
    assert "plugin's code (" in dry
    done = cli(*run)
    assert done.returncode == 0
    assert re.search(r"1 cell of moody: .*plugin's code \(", done.stdout)
    assert "1 record " in done.stdout


# Another version of vipbench: ECE is twice what it was, and its revision raised.
NEWER = """
import dataclasses
import vipbench.results.records.metrics as m

first = m._ece
m._ece = lambda y, s: 2 * first(y, s)
m.METRICS["ece"] = dataclasses.replace(m.METRICS["ece"], revision=2)
"""


def test_a_metric_that_changed_trains_nothing_again(
    cli: Cli, toy: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    out = tmp_path / "out"
    run = [
        *("run", "--methods", "linear-probe", "--datasets", f"npz:{toy / 'toy.npz'}"),
        *("--backbones", "tiny-clip", "--views", "none", "--shots", "2", "--out", out),
    ]
    assert cli(*run, "--seeds", "1").returncode == 0
    with Store(out, readonly=True) as store:
        [old] = store.records()
        kept = store.predictions(old.key)
    assert kept is not None
    (tmp_path / "sitecustomize.py").write_text(NEWER)
    newer = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPO)])}
    done = cli(*run, "--seeds", "1,2", env=newer)
    assert done.returncode == 0, done.stderr
    assert "2: 1 to do, 1 done" in done.stdout
    # Old and new stand in one table of the new metric: computed from the kept scores.
    program = tmp_path / "newer.py"
    program.write_text(f"{NEWER}\nfrom vipbench.cli import main\nmain()\n")

    def with_newer(*args: object) -> str:
        command = [sys.executable, program, *map(str, args), "--format", "json"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with_newer("table", out, "--metric", "ece")
    shown = json.loads(with_newer("show", old.key, out))
    assert shown["provenance"]["metric_revisions"]["ece"] == 2
    assert shown["provenance"]["rescored"]["from"]["ece"] == 1
    assert shown["metrics"]["ece"] == 2 * old.metrics["ece"]
    assert shown["metrics"]["accuracy"] == old.metrics["accuracy"]
    with Store(out, readonly=True) as store:
        again = store.record(old.key)
    assert again is not None
    assert again.metrics == old.metrics
