"""Ctrl-C and SIGTERM: finished cells are kept, and the same command resumes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vipbench.results.store.store import Store

REPO = Path(__file__).resolve().parents[2]


def start(toy: Path, cwd: Path, seconds: float) -> subprocess.Popen[str]:
    """Six rows of one cell each, which are six groups of cells."""
    rows = ",".join(f"slow[tag={i},seconds={seconds}]" for i in range(6))
    args = [
        *("run", "--methods", rows, "--datasets", f"npz:{toy / 'toy.npz'}"),
        *("--backbones", "tiny-clip", "--shots", "1", "--seeds", "1", "--views", "none"),
        *("--plugins-dir", str(toy / "plugins"), "--out", "results"),
    ]
    env = {**os.environ, "PYTHONPATH": str(REPO), "TOY_PIDS": str(cwd / "pids")}
    env.pop("VIPBENCH_PLUGINS_DIR", None)
    return subprocess.Popen(
        [sys.executable, "-m", "vipbench", *args],
        cwd=cwd,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for_cells(process: subprocess.Popen[str], cwd: Path, begun: int) -> None:
    """Until `begun` cells have been started."""
    pids = cwd / "pids"
    deadline = time.monotonic() + 120
    while not pids.exists() or len(pids.read_text().splitlines()) < begun:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def assert_workers_end(cwd: Path) -> None:
    deadline = time.monotonic() + 10
    for pid in {int(line) for line in (cwd / "pids").read_text().split()}:
        while Path(f"/proc/{pid}").exists() and running(pid):
            assert time.monotonic() < deadline, f"process {pid} was left behind"
            time.sleep(0.1)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_signal_keeps_what_is_done(toy: Path, tmp_path: Path, number: int, status: int) -> None:
    process = start(toy, tmp_path, seconds=0.5)
    wait_for_cells(process, tmp_path, begun=3)
    process.send_signal(number)
    began = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert process.returncode == status
    with Store(tmp_path / "results", readonly=True) as store:
        records = store.records()
    kept = len(records)
    assert 2 <= kept < 6
    assert all(record.ok for record in records), [record.error for record in records]
    assert re.findall(r"\d+", err.splitlines()[-1]) == [str(kept), str(6 - kept)]
    assert re.search("saved.*results", err)
    assert "command" in err
    assert "Traceback" not in err
    assert_workers_end(tmp_path)
    if number == signal.SIGTERM:
        return

    process = start(toy, tmp_path, seconds=0.5)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert f"6: {6 - kept} to do, {kept} done" in out
    with Store(tmp_path / "results", readonly=True) as store:
        assert len(store.records()) == 6


def test_a_second_signal_ends_at_once(toy: Path, tmp_path: Path) -> None:
    process = start(toy, tmp_path, seconds=60)
    wait_for_cells(process, tmp_path, begun=1)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert time.monotonic() - began < 3
    assert process.returncode == 130
    assert_workers_end(tmp_path)
