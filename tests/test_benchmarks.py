"""The suites in benchmarks/, and the benchmark of CUDA graphs without a GPU."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.cluster_plan import simulate
from benchmarks.speed.graphs import compare
from benchmarks.speed.grid import Grid
from tests.engine.test_replay import Tapes
from vipbench.api import Backbone
from vipbench.engine.training.cuda_graphs import Replays
from vipbench.plugins.registry import load_registry
from vipbench.runspec.run import RunSpec

SUITES = sorted((Path(__file__).resolve().parents[1] / "benchmarks").glob("*.yaml"))


@pytest.mark.parametrize("suite", SUITES, ids=lambda path: path.stem)
def test_a_suite_can_be_read_and_names_what_there_is(suite: Path) -> None:
    spec = RunSpec.from_yaml(suite)
    registry = load_registry()
    for method in spec.methods:
        found, _ = registry.method(method.name)
        found.HParams(**method.hparams)


def test_the_suite_of_all_methods_has_every_built_in_one() -> None:
    [suite] = [path for path in SUITES if path.stem == "all-methods"]
    spec = RunSpec.from_yaml(suite)
    assert {method.name for method in spec.methods} == set(load_registry().methods)
    assert (spec.datasets, spec.backbones) == (("synthderm",), ("tiny-clip",))
    assert (spec.shots, spec.seeds, spec.profile) == ((1, 4, 16), (1, 2, 3), "quick")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_graphs_need_a_gpu(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "benchmarks.speed.graphs"]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=root, env=environment, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert "CUDA" in line


@pytest.mark.parametrize("name", ["vip", "cocoop"])
def test_what_the_benchmark_of_graphs_compares(name: str) -> None:
    tower, _ = load_registry().backbone("tiny-clip")
    assert isinstance(tower, Backbone)
    tapes = Tapes()
    shown = compare(Grid(tower, 40), name, 2, Replays(tapes, pytest.fail), shots=1)
    assert re.match(f"{name}, 2 cells: ", shown)
    steps = {"vip": 40, "cocoop": 80}[name]
    assert f"{(steps - 3) / steps:.0%} of {steps} " in shown
    assert shown.endswith(" 0.0e+00")
    assert [tape.closed for tape in tapes.tapes] == [True]


def test_the_plan_of_a_large_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulate(800, tmp_path / "out")
    shown = capsys.readouterr().out
    assert "800 cells in 200 parts" in shown
    for step in ("cut", "jobs write", "collect", "table"):
        assert re.search(f"^{step} .* ms a cell$", shown, re.MULTILINE)
    assert re.search("files in a folder: at most [0-9,]+$", shown, re.MULTILINE)
