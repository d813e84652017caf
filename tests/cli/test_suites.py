"""The suites of ViP's tables, positional suites and saved runs that grow."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from vipbench.cli.commands.suites import make_spec
from vipbench.errors import UsageError
from vipbench.runspec.run import RunSpec

Cli = Callable[..., "CompletedProcess[str]"]


@pytest.mark.parametrize("number", [1, 2])
def test_the_papers_tables_state_its_protocol(repo: Path, number: int) -> None:
    spec = RunSpec.from_yaml(repo / "benchmarks" / f"vip-table{number}.yaml")
    assert (spec.shots, spec.seeds) == (("full",), (1, 2, 3))
    assert (spec.validation, spec.selection) == ("full", "best_val")
    assert spec.datasets == ("derm7pt", "pneumonia")
    assert len(spec.backbones) == 3
    trained = [m for m in spec.methods if m.name in ("coop", "cocoop", "maple")]
    assert len(trained) == (3 if number == 1 else 0)
    for method in trained:
        assert method.hparams == {
            "n_ctx": 4, "context_init": "", "lr": 1e-3, "epochs": 50, "batch_size": 32
        }  # fmt: skip


@pytest.mark.parametrize("number", [1, 2])
def test_a_reduced_form_runs_to_its_table(
    cli: Cli, repo: Path, tmp_path: Path, number: int
) -> None:
    few = [f"--set={name}.epochs=1" for name in ("coop", "cocoop", "maple", "vip")]
    done = cli(
        *("run", repo / "benchmarks" / f"vip-table{number}.yaml", "--backbones", "tiny-clip"),
        *("--datasets", "synthderm", "--out", tmp_path / "out", "--seeds", "1"),
        *("--views", "none", *(few if number == 1 else few[3:])),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ViP[epochs=1]" in done.stdout
    assert "– (" not in done.stdout
    shown = " ".join(done.stdout.split())  # the caption has lines of the terminal's width
    assert "whole" in shown
    assert re.search("validation .*full.*best_val", shown)
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert {f"table{number}.{end}" for end in ("md", "tex", "pdf", "svg", "png", "txt")} <= files


def test_names_against_symptoms_is_one_command(cli: Cli, repo: Path, tmp_path: Path) -> None:
    done = cli("run", "--suite", repo / "benchmarks" / "vip-figure2.yaml", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "figure2.tex, figure2.pdf, figure2.svg, figure2.png, figure2.txt" in done.stdout
    table = (tmp_path / "figure2.md").read_text()
    assert "| class names    | names" in table
    assert re.search("95 % .*bootstrap", table)
    found = {
        line.split("|")[2].strip(): [float(n) for n in re.findall(r"[\d.]+", line.split("|")[3])]
        for line in table.splitlines()
        if "(" in line and line.startswith("|")
    }
    # Where the truth is known symptoms beat names: the intervals do not even touch.
    assert found["symptoms (mean)"][1] > found["names"][2]
    assert found["symptoms (maximum)"][1] > found["names"][2]
    picture = (tmp_path / "figure2.svg").read_text()
    for word in ("names", "symptoms (mean)", "symptoms (maximum)", "majority class"):
        assert re.search(rf"<text[^>]*>{re.escape(word)}</text>", picture)


def test_a_saved_run_is_extended(tmp_path: Path) -> None:
    file = RunSpec.parse({"methods": "zero-shot,coop", "out": tmp_path}).save()
    grown = make_spec(file, {"methods": "+kgcoop,+coop", "seeds": "1-8"})
    assert [m.label for m in grown.methods] == ["zero-shot", "coop", "kgcoop"]
    assert grown.seeds == tuple(range(1, 9))
    assert grown.out == tmp_path
    assert [m.label for m in make_spec(file, {"methods": "vip"}).methods] == ["vip"]
    with pytest.raises(UsageError, match=r"\+kgcoop,vip.*\+ before"):
        make_spec(file, {"methods": "+kgcoop,vip"})


def test_two_suites_are_refused(cli: Cli, repo: Path) -> None:
    suite = repo / "benchmarks" / "demo.yaml"
    done = cli("run", suite, "--suite", suite, "--dry-run")
    assert done.returncode == 2
    assert "--suite" in done.stderr


def test_a_list_as_a_value_makes_a_grid() -> None:
    spec = RunSpec.from_yaml_text(
        "methods: [{name: vip, label: w/o context, context: off, n_ctx: [2, 4]}]"
    )
    assert [m.label for m in spec.methods] == ["w/o context[n_ctx=2]", "w/o context[n_ctx=4]"]
