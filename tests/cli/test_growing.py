"""A results folder that is run into again: failures, and a plugin whose code changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

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
    assert "Nothing to do: 0 cells are done." in left.stdout
    assert "1 cell failed before and is not tried again (--no-retry)" in left.stderr
    word.write_text("WORD = 'work'")
    dry = cli(*run, "--dry-run").stdout
    assert "changed since the last result: the plugin's code (" in dry
    done = cli(*run)
    assert done.returncode == 0
    assert "1 record of the same cells under earlier settings is not shown." in done.stdout
