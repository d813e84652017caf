"""Recorded generations replay offline, bit by bit, through the command line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.symptoms.record import HERE, RECORDED, command
from vipbench.datasets.synthderm import CLASS_NAMES

Cli = Callable[..., "CompletedProcess[str]"]


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_generation_replays(
    cli: Cli, tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    source = name
    if name != "synthderm":
        source = f"npz:{request.getfixturevalue('shared') / 'data' / name}.npz"
    out = tmp_path / f"{name}.json"
    done = cli(*command(source, RECORDED[name], name, out))
    assert done.returncode == 0, done.stderr
    assert "0 requests" in done.stderr
    assert out.read_bytes() == (HERE / out.name).read_bytes()
    page = f"{out.name}.report.md"
    assert (tmp_path / page).read_bytes() == (HERE / page).read_bytes()
    assert len(list((tmp_path / f"{out.name}.grids").glob("*.png"))) in (2, 6)


def test_check_finds_and_refusals_are_one_line(cli: Cli, tmp_path: Path) -> None:
    own = (HERE / "synthderm.json").read_text()
    (tmp_path / "s.json").write_text(own.replace("a brown surface", "a waxy yellow surface"))
    done = cli("symptoms", "check", tmp_path / "s.json", "--dataset", "synthderm")
    assert done.returncode == 1
    assert "duplicate: " in done.stdout
    assert "edited: " in done.stdout
    nobody = cli(
        "symptoms", "generate", "--dataset", "synthderm", "--modality", "x", "--model", "y",
        "-o", tmp_path / "o.json",
    )  # fmt: skip
    # By hand: a prompt for each class, and what to do with the replies.
    assert nobody.returncode == 0
    assert all(nobody.stdout.count(f"# {name} (") == 1 for name in CLASS_NAMES)
    assert nobody.stdout.count("Which visual features help a CLIP model") == len(CLASS_NAMES)
    assert "--base-url" in nobody.stderr
    assert f"--symptoms {tmp_path / 'o.json'}" in nobody.stderr
    assert not (tmp_path / "o.json").exists()
    unseen = cli(
        "symptoms", "generate", "--dataset", "synthderm", "--modality", "x", "--model", "y",
        "-o", tmp_path / "o.json", "--base-url", "http://127.0.0.1:9/v1", "--images", "support:4:1",
    )  # fmt: skip
    assert unseen.returncode == 2
    assert "--send-images" in unseen.stderr
    silent = cli(
        "symptoms", "generate", "--dataset", "synthderm", "--modality", "x", "--model", "y",
        "-o", tmp_path / "o.json", "--base-url", "http://me:secret@127.0.0.1:9/v1",
        "--max-requests", "1",
    )  # fmt: skip
    assert silent.returncode == 2
    assert re.search("http://127.0.0.1:9/v1: .*connection", silent.stderr)
    assert "secret" not in silent.stderr
