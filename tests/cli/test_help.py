"""Asking for help is quick, and a mistake in the arguments is told in one line."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import typer

from tests import warm
from vipbench import __version__
from vipbench.cli import main
from vipbench.cli.app import app
from vipbench.cli.commands.suites import make_spec
from vipbench.errors import UsageError
from vipbench.runspec.run import demo_suite

Cli = Callable[..., "CompletedProcess[str]"]
HEAVY = ("torch", "numpy", "pandas", "rich", "open_clip", "yaml")


@pytest.mark.parametrize("args", [["--help"], [], ["run", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(cli: Cli, args: list[str]) -> None:
    done = cli(*args, env={"PYTHONPROFILEIMPORTTIME": "1", warm.COLD: "1"})
    assert done.returncode == 0
    assert ("vipbench " + __version__ if "--version" in args else "Usage: vipbench") in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "vipbench.cli.app" in imported
    assert imported.isdisjoint(HEAVY)


# What a RunSpec or the command itself checks.
CHECKED = {"--workers", "--cell-timeout", "--level", "--part", "--encode", "--decimals"}
CHECKED |= {"--trials", "--search-seed", "verify --seed"}
NUMBERS = {"N", "X", "T", "SECONDS", "SHARE"}


def test_no_option_takes_a_number_without_sense(capsys: pytest.CaptureFixture[str]) -> None:
    """Of each option that takes a number, of every command: infinity, nan, and one below zero."""

    def walk(command: Any, words: list[str]) -> None:
        for name, inner in getattr(command, "commands", {}).items():
            walk(inner, [*words, name])
        for option in command.params:
            flag, metavar = option.opts[0], option.metavar
            if metavar not in NUMBERS or {flag, f"{words[-1]} {flag}"} & CHECKED:
                continue
            numbers.append(flag)
            for value in ("-99",) if metavar == "N" else ("nan", "inf", "-99"):
                with pytest.raises(SystemExit) as end:
                    main([*words, flag, value])
                assert end.value.code == 2, (words, flag, value)
                printed = capsys.readouterr().err
                assert flag in printed
                assert value in printed

    numbers: list[str] = []
    walk(typer.main.get_command(app), [])
    assert {"--tolerance", "--errors", "--jobs", "-n", "--timeout"} <= set(numbers)


WITHOUT = """
import sys
sys.modules["fcntl"] = None  # importing it fails, as on a system that has none
from vipbench.cli import main
main(sys.argv[1:])
"""


def test_help_and_list_of_options_need_no_fcntl() -> None:
    for args in (["--help"], ["fetch", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT, *args], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "Usage: vipbench" in done.stdout


def test_every_option_is_a_field_of_the_suite(cli: Cli) -> None:
    from vipbench.runspec.run import RunSpec

    text = cli("run", "--help").stdout
    for field in RunSpec.model_fields:
        if field != "title":
            assert f"--{field.replace('_', '-')} " in text


@pytest.mark.parametrize(
    ("args", "fact"),
    [
        (["--foo"], "--foo"),
        (["runn"], "'runn'"),
        (["symptoms", "compare", "a", "b"], "`diff`"),
        (["plot", "results", "curves.pdf"], "--out"),
        (["run", "--epochs", "3"], "METHOD[epochs=3]"),
        (["run", "--methods", "coop[n_ctx=4]", "--epochs=3"], "'coop[n_ctx=4,epochs=3]'"),
        (["run", "--mehtods", "vip"], "--methods"),
        (["run", "vip"], "suite 'vip'"),
        (["run", "--methods"], "'--methods'"),
        (["run", "--cell-timeout", "soon"], "--cell-timeout"),
        (["run", "--shots", "0"], "--shots: 0 "),
        (["run", "--seeds", "1,1"], "--seeds: '1'"),
        (["run", "--views", "many"], "--views: expected per-epoch, none"),
        (["run", "--device", "tpu"], "--device: expected 'auto', 'cpu', 'cuda', 'mps'"),
        (["run", "--methods", "vip[a"], "NAME[hparam=value,...]"),
        (["run", "--methods", "coop", "--set", "vip.M=4"], "'vip'"),
        (["run", "--suite", "none.yaml"], "'none.yaml'"),
        (["run", "--selection", "best_val", "--validation", "none"], "validation 'min(k,4)'"),
        (["table"], "vipbench-results"),
        (["table", "nowhere"], "nowhere"),
        (["table", "nowhere", "--format", "docx"], "'docx'"),
        (["list", "method"], "'methods'"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(cli: Cli, args: list[str], fact: str) -> None:
    done = cli(*args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("vipbench: error: ")
    assert fact in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_wrong_suite_names_file_and_line(cli: Cli, tmp_path: Path) -> None:
    suite = tmp_path / "mine.yaml"
    suite.write_text("methods: [vip]\nshotz: [1]\n")
    done = cli("run", "--suite", suite)
    assert done.returncode == 2
    assert re.search(f"'{suite}', line 2: .*'shotz'.*'shots'", done.stderr)
    assert done.stdout == ""


def test_the_demo_suite_is_the_one_in_benchmarks(repo: Path) -> None:
    bundled = resources.files("vipbench").joinpath("suites", "demo.yaml").read_bytes()
    assert bundled == (repo / "benchmarks" / "demo.yaml").read_bytes()


def test_the_demo_suite() -> None:
    spec = demo_suite()
    assert spec.datasets == ("synthderm",)
    assert spec.backbones == ("tiny-clip",)
    assert {method.name for method in spec.methods} >= {"zero-shot", "symptoms-mean", "vip"}
    assert "synthetic" in (spec.title or "")
    assert "symptoms help" in (spec.title or "")


def test_what_is_run_without_a_suite() -> None:
    assert make_spec(None, {}) == demo_suite()
    assert make_spec(None, {"shots": "4"}).title == demo_suite().title
    asked = make_spec(None, {"methods": "vip"}, ["vip.M=8"])
    assert asked.title is None
    assert asked.views == "per-epoch"
    assert asked.methods[0].hparams == {"M": 8}


def test_a_suite_goes_before_the_environment_but_not_before_flags(tmp_path: Path) -> None:
    suite = tmp_path / "s.yaml"
    suite.write_text("plugins_dir: mine")
    flags = {"plugins_dir": Path("other")}
    assert make_spec(suite, flags).plugins_dir == Path("other")
    assert make_spec(suite, flags, (), True).plugins_dir == tmp_path / "mine"
    with pytest.raises(UsageError):
        make_spec(tmp_path / "none.yaml", {})
