"""`vipbench cache` through the command line, on a cache that a run filled."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conftest import Cli

RUN = ["run", "--datasets", "synthderm", "--backbones", "tiny-clip", "--shots", "1", "--seeds", "1",
       "--views", "none"]  # fmt: skip


def test_a_second_run_encodes_nothing(cli: Cli, tmp_path: Path) -> None:
    env = {"VIPBENCH_CACHE": str(tmp_path / "cache")}
    first = cli(*RUN, "--methods", "linear-probe", "--out", tmp_path / "a", env=env)
    assert first.returncode == 0, first.stderr
    blocks = {f: f.stat().st_mtime_ns for f in (tmp_path / "cache").rglob("*.safetensors")}
    assert len(blocks) >= 3  # train, val, test
    second = cli(*RUN, "--methods", "linear-probe,zero-shot", "--out", tmp_path / "b", env=env)
    assert second.returncode == 0, second.stderr
    after = {f: f.stat().st_mtime_ns for f in (tmp_path / "cache").rglob("*.safetensors")}
    [texts] = after.keys() - blocks.keys()
    assert '"texts"' in (texts.parent / "shelf.json").read_text()
    del after[texts]
    assert after == blocks
    third = cli(*RUN, "--methods", "tip-adapter,zero-shot", "--out", tmp_path / "c", env=env)
    assert third.returncode == 0, third.stderr
    assert {*(tmp_path / "cache").rglob("*.safetensors")} == {*blocks, texts}

    output = cli("cache", "info", env=env).stdout
    assert str(tmp_path / "cache") in output
    assert len(re.findall(r"evaluation", output)) == 3
    assert cli("cache", "clear", env=env).returncode != 0  # nobody to ask
    assert "freed" in cli("cache", "clear", "--yes", env=env).stdout
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
