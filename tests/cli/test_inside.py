"""Looking inside: `vipbench show` and `vipbench run --debug`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from safetensors.numpy import load

from vipbench.results import Store

Cli = Callable[..., "CompletedProcess[str]"]
REPO = Path(__file__).resolve().parents[2]


def flags(toy: Path, method: str) -> list[str]:
    return [
        *("--methods", method, "--datasets", f"npz:{toy / 'toy.npz'}", "--backbones", "tiny-clip"),
        *("--views", "none", "--shots", "2", "--seeds", "1", "--plugins-dir", str(toy / "plugins")),
    ]


def test_a_record_is_shown_whole(cli: Cli, toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli("run", *flags(toy, "coop[epochs=3],boom"), "--out", out).returncode == 1
    with Store(out, readonly=True) as store:
        good, bad = sorted(store.records(), key=lambda r: r.status == "error")
        predictions = store.predictions(good.key)
        parameters = store.parameters(good.key)
    assert parameters is not None
    assert load(parameters)["context"].shape[0] == good.hparams["n_ctx"]

    text = cli("show", good.key[:10], out).stdout
    assert good.key in text
    for part in ("hparams", "recipe", "protocol", "data", "provenance", "metrics", "history"):
        assert f"\n{part}\n" in text
    assert "gradient_norm" in text
    assert "context: [16, 64]" in text
    whole = json.loads(cli("show", good.key, out, "--format", "json").stdout)
    errors = whole.pop("per_class_errors")
    assert whole == good.to_dict()
    assert predictions is not None
    wrong = predictions.scores.argmax(1) != predictions.labels
    assert sum(e["wrong"] for e in errors) == wrong.sum() == sum(e["false_alarms"] for e in errors)
    for label, e in enumerate(errors):
        mine = predictions.labels == label
        assert (e["class"], e["n"]) == (("dark", "bright")[label], mine.sum())
        assert sum(e["taken_for"].values()) == (mine & wrong).sum() == e["wrong"]
        assert len(e["furthest"]) == min(3, e["wrong"])

    cell = good.cell
    chosen = ["--methods", cell.method, "--shots", str(cell.shots), "--seeds", str(cell.seed)]
    assert cli("show", out, *chosen).stdout == cli("show", good.key, out).stdout
    several = cli("show", out)
    assert several.returncode == 2
    assert good.key[:8] in several.stderr
    assert "--methods" in several.stderr
    failed = cli("show", bad.key[:10], out).stdout
    assert "RuntimeError" in failed
    assert "prepare" in failed

    for key, expected in (
        ("zz", "a key"),
        ("f" * 20, "record"),
        ("", "key"),
    ):
        refused = cli("show", key, out)
        assert refused.returncode == 2
        assert expected in refused.stderr


def test_debug_runs_one_cell_in_the_foreground(cli: Cli, toy: Path, tmp_path: Path) -> None:
    done = cli("run", "--debug", *flags(toy, "zero-shot,linear-probe"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"zero-shot on toy with tiny-clip.* 2\b.* cells", done.stdout)
    assert "accuracy: " in done.stdout
    assert list(tmp_path.glob("vipbench-results*")) == []


def test_debug_stays_where_a_method_fails(toy: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vipbench", "run", "--debug", "--pdb", *flags(toy, "boom")],
        input="p support.shots * 100\nq\n",
        env={**os.environ, "PYTHONPATH": str(REPO)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 1
    assert "RuntimeError" in done.stderr
    assert "200" in done.stdout


@pytest.mark.parametrize(
    ("args", "facts"),
    [
        (["run", "--debug", "--dry-run", "--no-retry"], ["--debug", "--dry-run", "--no-retry"]),
        (["run", "--pdb"], ["--pdb", "--debug"]),
        (["debug"], ["vipbench run --debug"]),
        (["debug", "--methods", "vip", "suite.yaml", "--pdb"], ["vipbench run --debug"]),
        (["debug", "--help"], ["vipbench run --debug"]),
    ],
)
def test_debug_is_an_option_of_run_that_keeps_nothing(
    cli: Cli, args: list[str], facts: list[str]
) -> None:
    done = cli(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert all(fact in done.stderr for fact in facts), done.stderr
    assert "  debug " not in cli("--help").stdout


def test_an_estimate_tells_time_disk_and_memory(cli: Cli, toy: Path, tmp_path: Path) -> None:
    methods = "coop[epochs=400],vpt[epochs=2],zero-shot"
    run = ["run", *flags(toy, methods), "--out", tmp_path / "o"]
    done = cli(*run, "--dry-run", "--estimate", env={"VIPBENCH_CACHE": str(tmp_path / "cache")})
    assert done.returncode == 0, done.stderr
    lines = done.stdout[done.stdout.index("Estimate, ") :].splitlines()
    rows = [line for line in lines if line.startswith(("coop", "vpt", "zero-shot"))]
    assert len(rows) == 3
    assert all("encoding " in row and " timed" in row for row in rows)
    assert not any("?" in row or "cannot" in row for row in rows)
    sums = [line for line in lines if line.startswith(("time", "disk", "memory"))]
    assert [line.split()[0] for line in sums] == ["time", "disk", "memory"]
    # 10 test, 4 training and 4 validation images of 128 float32 features.
    assert "disk    9.2 kB" in done.stdout
    assert list(tmp_path.glob("o")) == []
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert "--dry-run" in cli(*run, "--estimate").stderr
