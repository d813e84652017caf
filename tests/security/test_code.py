"""Code that a file asks for runs only where the user named it or said yes.

One test walks the commands of the command line itself, so that a new one has to be decided on.
"""

from __future__ import annotations

import hashlib
import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.conftest import REPO
from tests.security.conftest import REMOTE, Stranger
from vipbench.cli.app import app

# Of each command that can meet code: calls where a file asks for it, and nobody named it.
MEETS: dict[str, list[tuple[str, ...]]] = {
    "run": [
        ("run", "suite.yaml", "--dry-run"),
        ("run", "--suite", "results/suite.yaml"),
        ("run", "remote.yaml", "--dry-run"),
        ("run", "--debug", "suite.yaml"),
        ("run", "--debug", "remote.yaml"),
        ("run", "setup.yaml", "--jobs", "2"),
        ("run", "module.yaml"),
    ],
    "tune": [("tune", "suite.yaml", "--methods", "coop", "--out", "out/t", "--dry-run")],
    "doctor": [("doctor", "suite.yaml")],
    "fetch": [("fetch", "suite.yaml")],
    "explain": [("explain", "results", "-o", "out/page.html")],
    "prompts": [("prompts", "results", "-o", "out/prompts")],
    "export": [("export", "results", "--bundle", "-o", "out/b.zip")],
    "verify": [
        ("verify", "results", "--rerun", "1"),
        ("verify", "results", "--rerun", "1", "--suite", "suite.yaml"),
        ("verify", "forged", "--rerun", "1"),
    ],
    "reproduce": [
        ("reproduce", "bundle.zip", "--out", "out/plugins"),
        ("reproduce", "remote.zip", "--out", "out/remote"),
    ],
    "predict": [("predict", "prompt.safetensors", "image.png")],
    "evaluate": [("evaluate", "prompt.safetensors", "--dataset", "synthderm")],
    # These load no code but what their own arguments name.
    "list": [],
    "audit": [],
    "check": [],
    "symptoms generate": [],
    "symptoms check": [],
    "symptoms rank": [],
}
# Commands that never load any: how each is called on the stranger's results.
NEVER: dict[str, tuple[str, ...] | None] = {
    "table": ("table", "results"),
    "compare": ("compare", "marked", "all", "results"),
    "plot": ("plot", "results", "--kind", "bars", "-o", "out/p.svg"),
    "leaderboard": ("leaderboard", "results", "-o", "out/board"),
    "import": ("import", "records.jsonl", "--out", "out/imported", "--submitter", "them"),
    "merge": ("merge", "results", "--out", "out/merged"),
    "cite": ("cite", "results"),
    "show": ("show", "0", "results"),
    "export": ("export", "results", "-o", "out/r.csv"),
    "verify": ("verify", "results"),
    "trust": ("trust", "--list"),
    "status": ("status", "jobs"),
    "collect": ("collect", "jobs"),
    "cancel": ("cancel", "jobs"),
    "work": ("work", "jobs", "--part", "0"),
    "cache info": ("cache", "info"),
    "cache clear": None,
    "new": None,
    "dataset split": ("dataset", "split", "folder:plugins"),
    "symptoms show": ("symptoms", "show", "--dataset", "synthderm"),
    "symptoms diff": None,
}


def commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every command of the command line, by the words that call it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before}{name} ")
        elif not command.hidden:  # the former name of a command
            yield f"{before}{name}", command


ALL = dict(commands(typer.main.get_command(app)))


def test_every_command_is_decided_on() -> None:
    assert ALL.keys() == MEETS.keys() | NEVER.keys()
    for name, command in ALL.items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert ("--allow-code" in options) == (name in MEETS), name
        assert name in MEETS or not options & {"--plugins-dir", "--backbone"} or name == "new", name


@pytest.mark.parametrize("args", [a for some in MEETS.values() for a in some], ids=" ".join)
def test_code_that_a_file_asks_for_does_not_run(
    unmarked: Stranger, tmp_path: Path, args: tuple[str, ...]
) -> None:
    """Standard input is closed. The environment names a folder of plugins, but not the suite's."""
    (tmp_path / "mine").mkdir()
    named = {"VIPBENCH_PLUGINS_DIR": str(tmp_path / "mine")} if args[0] in ("run", "tune") else {}
    done = unmarked.run(*args, config=tmp_path / "config", **named)
    assert not unmarked.mark.exists()
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "--allow-code" in done.stderr
    files = [*(unmarked.folder / "plugins").glob("*.py")]
    if "remote" in " ".join(args) or {"prompt.safetensors", "forged"} & {*args}:
        files = [*unmarked.folder.glob("hub/*/snapshots/*/own.py")]
    if {"setup.yaml", "module.yaml"} & {*args}:
        files = []
        assert "SHA-256" in done.stderr
    for file in files:
        assert file.name in done.stderr
        assert hashlib.sha256(file.read_bytes()).hexdigest() in done.stderr
    assert not (tmp_path / "config").exists()


@pytest.mark.parametrize("args", [a for a in NEVER.values() if a], ids=" ".join)
def test_commands_that_need_no_code_load_none(
    unmarked: Stranger, tmp_path: Path, args: tuple[str, ...]
) -> None:
    done = unmarked.run(*args, config=tmp_path / "config")
    assert not unmarked.mark.exists()
    assert "--allow-code" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("args", "env"),
    [
        (("fetch", "suite.yaml", "--allow-code"), {}),
        (("fetch", "suite.yaml"), {"VIPBENCH_ALLOW_CODE": "1"}),
        (("run", "remote.yaml", "--dry-run", "--allow-code"), {}),
        (("reproduce", "bundle.zip", "--out", "out/yes", "--yes"), {}),
    ],
    ids=str,
)
def test_allowing_code_keeps_nothing(
    unmarked: Stranger, tmp_path: Path, args: tuple[str, ...], env: dict[str, str]
) -> None:
    done = unmarked.run(*args, config=tmp_path / "config", **env)
    assert unmarked.mark.exists(), done.stderr
    assert "--allow-code" not in done.stderr
    assert not (tmp_path / "config").exists()


def test_what_is_named_becomes_trusted_until_a_byte_changes(
    unmarked: Stranger, tmp_path: Path
) -> None:
    config, plugins = tmp_path / "config", tmp_path / "mine"
    plugins.mkdir()
    for file in (unmarked.folder / "plugins").glob("*.py"):
        (plugins / file.name).write_bytes(file.read_bytes())
    (tmp_path / "suite.yaml").write_text("methods: [marked]\nplugins_dir: mine\n")
    suite = ("run", tmp_path / "suite.yaml", "--dry-run")
    assert unmarked.run(*suite, config=config).returncode == 2
    assert unmarked.run("list", "--plugins-dir", plugins, config=config).returncode == 0
    assert unmarked.mark.exists()
    kept = config / "trusted-code.json"
    assert kept.stat().st_mode & 0o777 == 0o600
    # Now the suite needs no word more, and neither does the same code in another place.
    assert unmarked.run(*suite, config=config).returncode == 0
    assert unmarked.run("run", "suite.yaml", "--dry-run", config=config).returncode == 0
    helpers = plugins / "helpers.py"
    listed = unmarked.run("trust", "--list", config=config).stdout
    assert hashlib.sha256(helpers.read_bytes()).hexdigest() in listed
    assert str(helpers) in listed
    # A module that the plugin imports counts as the plugin does.
    helpers.write_text(helpers.read_text() + "#")
    unmarked.mark.unlink()
    done = unmarked.run(*suite, config=config)
    assert (done.returncode, unmarked.mark.exists()) == (2, False)
    assert hashlib.sha256(helpers.read_bytes()).hexdigest() in done.stderr
    assert unmarked.run("trust", "--forget", config=config).returncode == 0
    assert unmarked.run("run", "suite.yaml", "--dry-run", config=config).returncode == 2


def test_a_named_backbone_becomes_trusted(unmarked: Stranger, tmp_path: Path) -> None:
    named = ("run", "--backbones", REMOTE, "--methods", "zero-shot", "--dry-run")
    assert unmarked.run(*named, config=tmp_path).returncode == 0
    assert unmarked.mark.exists()
    assert unmarked.run("run", "remote.yaml", "--dry-run", config=tmp_path).returncode == 0


def test_nothing_is_imported_from_the_working_directory(unmarked: Stranger, tmp_path: Path) -> None:
    text = f"import pathlib\npathlib.Path({str(unmarked.mark)!r}).touch()\n"
    for name in ("typing", "pluggy", "torch", "yaml", "typer", "platformdirs", "marked_module"):
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "x-1.dist-info").mkdir()
    (tmp_path / "x-1.dist-info" / "METADATA").write_text("Name: x\nVersion: 1\n")
    points = "[vipbench]\nx = marked_module\n"
    (tmp_path / "x-1.dist-info" / "entry_points.txt").write_text(points)
    cold = {"VIPBENCH_TEST_COLD": "1"}  # an interpreter that has imported nothing yet
    done = unmarked.run("fetch", "synthderm", config=tmp_path / "config", cwd=tmp_path, **cold)
    assert done.returncode == 0, done.stderr
    assert not unmarked.mark.exists()


def test_check_names_its_file_and_no_other(unmarked: Stranger, tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text("import vipbench\n")
    text = (unmarked.folder / "plugins" / "marked.py").read_text()
    (tmp_path / "other.py").write_text(text)
    done = unmarked.run("check", tmp_path / "toy.py", config=tmp_path / "config")
    assert "registers" in done.stderr
    assert not unmarked.mark.exists()
    trusted = json.loads((tmp_path / "config" / "trusted-code.json").read_text())["trusted"]
    assert [entry["file"] for entry in trusted.values()] == [str(tmp_path / "toy.py")]


@pytest.mark.parametrize(
    "damage",
    [b"{", b"[]", b'{"schema": 1, "trusted": {"abc": {"file": "a", "since": "b"}}}', b"\xff"],
)
def test_a_damaged_list_trusts_nothing(unmarked: Stranger, tmp_path: Path, damage: bytes) -> None:
    file = tmp_path / "trusted-code.json"
    file.write_bytes(damage)
    for args in (("run", "suite.yaml", "--dry-run"), ("trust",)):
        done = unmarked.run(*args, config=tmp_path)
        assert done.returncode == 2
        assert str(file) in done.stderr
        assert not unmarked.mark.exists()
    assert file.read_bytes() == damage
    assert unmarked.run("trust", "--forget", config=tmp_path).returncode == 0
    assert not file.exists()


def at_a_terminal(
    stranger: Stranger, config: Path, typed: bytes, *args: str, ahead: bytes = b""
) -> tuple[int, str]:
    """Status and screen of a command whose first question is answered with `typed`. ahead: typed
    before there is a question."""
    master, slave = pty.openpty()
    os.write(master, ahead)
    env = {k: v for k, v in os.environ.items() if not k.startswith("VIPBENCH_")}
    env |= {"PYTHONPATH": str(REPO), "TERM": "xterm", "COLUMNS": "200"}
    env |= {"VIPBENCH_CONFIG": str(config), "VIPBENCH_CACHE": str(stranger.cache)}
    process = subprocess.Popen(
        [sys.executable, "-m", "vipbench", *args],
        stdin=slave, stdout=slave, stderr=slave, env=env, cwd=stranger.folder,
        close_fds=True, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    screen, answered, end = b"", False, time.monotonic() + 120
    while time.monotonic() < end:
        try:
            part = os.read(master, 4096)
        except OSError:  # the other end is closed
            break
        screen += part
        if not answered and b"[y/N]" in screen:
            os.write(master, typed)
            answered = True
        if not part:
            break
    status = process.wait(30)
    os.close(master)
    return status, screen.decode()


def test_the_question_shows_each_file_and_is_asked_once(unmarked: Stranger, tmp_path: Path) -> None:
    asked = ("run", "suite.yaml", "--dry-run")
    status, screen = at_a_terminal(unmarked, tmp_path, b"n\n", *asked, ahead=b"y\n")
    assert (status, unmarked.mark.exists()) == (2, False), screen
    status, screen = at_a_terminal(unmarked, tmp_path, b"y\n", *asked)
    assert (status, unmarked.mark.exists()) == (0, True), screen
    for file in (unmarked.folder / "plugins").glob("*.py"):
        assert str(file) in screen
        assert hashlib.sha256(file.read_bytes()).hexdigest() in screen
    done = unmarked.run(*asked, config=tmp_path)
    assert done.returncode == 0
