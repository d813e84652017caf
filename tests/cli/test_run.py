"""`vipbench run` as a user sees it, in real processes on small data."""

from __future__ import annotations

import csv
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from vipbench.results.store.store import Store
from vipbench.runspec.run import RunSpec

Cli = Callable[..., "CompletedProcess[str]"]
REPO = Path(__file__).resolve().parents[2]


def grid(toy: Path, *methods: str) -> list[str]:
    return [
        *("run", "--methods", ",".join(methods), "--datasets", f"npz:{toy / 'toy.npz'}"),
        *("--backbones", "tiny-clip", "--views", "none", "--plugins-dir", str(toy / "plugins")),
    ]


def start(args: list[str], cwd: Path, **kwargs: object) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(REPO), "TOY_PIDS": str(cwd / "pids")}
    env.pop("VIPBENCH_PLUGINS_DIR", None)
    return subprocess.Popen(
        [sys.executable, "-m", "vipbench", *args], cwd=cwd, env=env, text=True, **kwargs
    )  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def ran(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str, int]:
    """A run in which one method fails at two shots: its folder, stdout, stderr and status."""
    cwd = tmp_path_factory.mktemp("ran")
    args = [*grid(toy, "zero-shot", "boom", "symptoms-mean"), "--shots", "1,2", "--seeds", "1-2"]
    process = start(args, cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=240)
    return cwd / "vipbench-results", out, err, process.returncode


@pytest.fixture
def folder(ran: tuple[Path, str, str, int], tmp_path: Path) -> Path:
    """A copy of that run's folder."""
    return shutil.copytree(ran[0], tmp_path / "results")


def test_a_run_tells_what_it_does(ran: tuple[Path, str, str, int], toy: Path) -> None:
    _, out, err, status = ran
    assert status == 1
    settings = dict(line.split(None, 1) for line in out.splitlines() if line.startswith("  "))
    assert settings["methods"] == "zero-shot, boom, symptoms-mean"
    assert settings["shots"] == "1, 2 (images per class)"
    assert settings["seeds"] == "1, 2"
    assert settings["validation"] == "min(k,4)"
    assert settings["output"] == "vipbench-results"
    assert settings["device"] in ("cpu", "cuda")
    assert settings["cells"] == "6: 5 to do, 1 impossible"
    assert re.search(r"impossible: symptoms-mean on toy with tiny-clip.*\(1 cell\): ", out)
    failed = [line for line in out.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 2
    for seed, line in enumerate(failed, start=1):
        assert re.search(f"boom on toy with tiny-clip.* 2 .*seed {seed}: ", line)
        assert "\\x1b[31m today" in line
        assert "'toy'" in line
        assert "toy.py" in line
    assert "majority" in out
    assert "– (0 of 2)" in out
    assert "vipbench-results: table.md, table.tex, results.csv, suite.yaml" in out
    assert err.startswith("vipbench: 2 ")
    assert err.count("\n") == 1


def test_a_log_holds_no_control_characters_and_no_place_of_the_program(
    ran: tuple[Path, str, str, int],
) -> None:
    _, out, err, _ = ran
    assert all(c.isprintable() or c == "\n" for c in out + err)
    assert str(REPO / "vipbench") not in out + err


def test_what_a_run_leaves(ran: tuple[Path, str, str, int], toy: Path) -> None:
    folder = ran[0]
    assert (folder / "table.md").read_text().startswith("| Method")
    assert "\\toprule" in (folder / "table.tex").read_text()
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted((r["method"], r["shots"], r["status"]) for r in rows) == [
        *[("boom", "1", "ok")] * 2,
        *[("boom", "2", "error")] * 2,
        ("zero-shot", "0", "ok"),
    ]
    suite = RunSpec.from_yaml(folder / "suite.yaml")
    assert suite.out == folder
    assert suite.shots == (1, 2)
    assert suite.plugins_dir == toy / "plugins"


def test_the_saved_suite_goes_on_and_does_only_what_is_missing(
    cli: Cli, folder: Path, toy: Path
) -> None:
    suite = ["run", "--suite", folder / "suite.yaml"]
    dry = cli(*suite, "--shots", "1,2,4", "--dry-run")
    assert dry.returncode == 0
    lines = dry.stdout.splitlines()
    cells = [line.split() for line in lines[lines.index("") + 2 :] if " toy " in line]
    assert len(cells) == 8
    assert sum(cell[0] == "done" for cell in cells) == 3
    assert sum(cell[:2] == ["to", "do"] for cell in cells) == 4
    assert sum("failed" in line and cell in line for line in lines for cell in ["boom"]) == 2
    assert sum(cell[0] == "impossible" for cell in cells) == 1
    before = (folder / "suite.yaml").read_bytes()
    assert "Nothing" in lines[-1]

    again = cli(*suite, "--shots", "1")
    assert again.returncode == 0, again.stderr
    assert "3 cells" in again.stdout
    assert "majority" in again.stdout
    assert (folder / "suite.yaml").read_bytes() != before
    with Store(folder, readonly=True) as store:
        assert len(store.records()) == 5


def test_a_dry_run_writes_nothing(cli: Cli, toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "untouched"
    done = cli(
        *grid(toy, "zero-shot", "vip[context=off]"), "--shots", "1", "--dry-run", "--out", out
    )
    assert done.returncode == 0, done.stderr
    assert "vip[context=off]" in done.stdout
    assert not out.exists()


def test_nothing_is_run_where_nothing_can_be(cli: Cli, toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "untouched"
    done = cli(*grid(toy, "symptoms-mean", "vip"), "--shots", "1", "--seeds", "1", "--out", out)
    assert done.returncode == 2
    assert re.search("2 cells .*symptoms-mean on toy", done.stderr)
    assert not out.exists()


def test_unknown_names_are_refused_before_anything_runs(cli: Cli, tmp_path: Path) -> None:
    out = str(tmp_path / "untouched")
    cases = [
        (["--methods", "linearprobe"], "unknown method 'linearprobe'; did you mean 'linear-probe'"),
        (["--methods", "vip", "--set", "vip.contxt=off"], "'contxt'; did you mean 'context'"),
        (["--datasets", "npz:no.npz", "--backbones", "tinyclip"], "did you mean 'tiny-clip'"),
    ]
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda case: cli("run", *case[0], "--out", out), cases))
    for (_, expected), done in zip(cases, runs, strict=True):
        assert done.returncode == 2
        assert done.stderr.startswith("vipbench: error: ")
        assert expected in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
    assert not Path(out).exists()


def test_a_second_writer_is_refused(cli: Cli, folder: Path) -> None:
    with Store(folder):
        done = cli("run", "--suite", folder / "suite.yaml")
    assert done.returncode == 2
    assert str(os.getpid()) in done.stderr
    assert "Traceback" not in done.stderr


def test_table(cli: Cli, folder: Path) -> None:
    plain = cli("table", folder)
    assert plain.returncode == 0
    assert plain.stdout.startswith("Accuracy (%)")
    markdown = cli("table", folder, "--format", "github", "--metric", "auroc").stdout
    assert markdown.startswith("| Method")
    assert "AUROC" in markdown
    assert "\\toprule" in cli("table", folder, "--format", "latex").stdout
    rows = list(csv.DictReader(cli("table", folder, "--format", "csv").stdout.splitlines()))
    assert {row["method"] for row in rows} >= {"zero-shot", "boom"}
    assert json.loads(cli("table", folder, "--format", "json").stdout)["rows"]
    wrong = cli("table", folder, "--metric", "accurcy")
    assert wrong.returncode == 2
    assert "'accuracy'" in wrong.stderr


def test_a_reader_that_has_seen_enough(folder: Path) -> None:
    process = start(
        ["table", str(folder), "--format", "json"],
        folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(60) == 141


def test_list(cli: Cli, toy: Path) -> None:
    text = cli("list", "--plugins-dir", toy / "plugins").stdout
    assert "Fails at two shots." in text
    assert "tiny-clip" in text
    found = cli(
        "list", "methods", "--format", "json", env={"VIPBENCH_PLUGINS_DIR": toy / "plugins"}
    )
    methods = {entry["name"]: entry for entry in json.loads(found.stdout)}
    assert methods["slow"]["hparams"]["seconds"] == {"type": "float", "default": 0.3}
    assert methods["slow"]["plugin"] == "toy"
    assert {"zero-shot", "coop", "vip"} <= set(methods)


def test_a_terminal_gets_a_bar(toy: Path, tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    rows = "slow[seconds=1.0,tag=1],slow[seconds=1.0,tag=2]"
    args = [*grid(toy, rows), "--shots", "1", "--seeds", "1", "--out", "results"]
    process = start(args, tmp_path, stdout=follower, stderr=follower, stdin=follower)
    os.close(follower)
    screen = b""
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # how Linux tells that the other side is gone
            break
        if not chunk:
            break
        screen += chunk
    os.close(leader)
    text = screen.decode()
    assert process.wait(60) == 0, text
    assert "reading" in text
    assert "1/2" in text
    assert "━" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is left hidden"
    assert "results" in text
