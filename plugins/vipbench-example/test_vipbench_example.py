"""The plugin as a user meets it: installed, listed, run. Skipped where it is not installed."""

import csv
import io
import subprocess
import sys

import pytest

pytest.importorskip("vipbench_example", reason="pip install ./plugins/vipbench-example")


def vipbench(*args, cwd):
    command = [sys.executable, "-m", "vipbench", *map(str, args)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_listed(tmp_path):
    assert "simpleshot" in vipbench("list", "methods", cwd=tmp_path)


def test_it_is_better_than_chance_on_the_demo_data(tmp_path):
    vipbench(
        *("run", "--methods", "simpleshot", "--datasets", "synthderm", "--backbones", "tiny-clip"),
        *("--shots", "16", "--seeds", "1,2", "--out", "results"),
        cwd=tmp_path,
    )
    out = vipbench("table", "results", "--format", "csv", "--metric", "accuracy", cwd=tmp_path)
    rows = [row for row in csv.DictReader(io.StringIO(out)) if row["method"] == "simpleshot"]
    assert [int(row["n"]) for row in rows] == [2]  # seeds
    assert float(rows[0]["mean"]) > 2 / 6  # six classes
