"""Parts as tasks of a real Ray, of which one is killed and one node is lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.slurm import end, processes
from tests.reliability import grid
from vipbench.engine.cluster.folder import Parts
from vipbench.runspec.run import RunSpec

# A share of what the long test does, for a trial.
SHARE = float(os.environ.get("VIPBENCH_TRIAL", "1"))
ray = pytest.importorskip("ray", reason="the extra [ray] is not installed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    """A head without resources, and two nodes of one CPU each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    size = {"num_cpus": 0, "object_store_memory": 80 * 1024**2, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=size)
    for _ in range(2):
        made.add_node(num_cpus=1, object_store_memory=80 * 1024**2)
    try:
        yield made
    finally:
        made.shutdown()


def works(out: Path) -> list[int]:
    return [pid for pid, words, _ in processes() if f"vipbench work {out} " in words]


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def disturbed(cluster: object, data: Path, rows: int, seeds: str, jobs: int, count: int) -> None:
    """A run whose tasks and nodes are lost in turn, so many times, is the undisturbed one."""
    methods = ",".join(f"steady[tag={i},seconds=0.1]" for i in range(rows))
    # A dataset without files: those in /tmp are refused, since each node has its own.
    alone = grid.start(data, data / "whole", methods, seeds=seeds, dataset="synthderm")
    status, _, err = grid.finish(alone)
    assert status == 0, err
    out = data / "out"
    env = {"RAY_ADDRESS": cluster.address, "VIPBENCH_CLUSTER_PACE": "0.1"}  # type: ignore[attr-defined]
    more = ("--executor", "ray", "--jobs", str(jobs))
    process = grid.start(data, out, methods, *more, seeds=seeds, env=env, dataset="synthderm")
    kinds = ["task", "node"] * (count // 2)
    while process.poll() is None and kinds:
        time.sleep(0.5)
        running = works(out)
        if not running:
            continue
        kind, task = kinds.pop(0), parent(running[0])
        victims = [task] if kind == "task" else [parent(task), task]
        for pid in victims:
            end(pid, signal.SIGKILL)
        # What it had started ends with it.
        grid.assert_gone({running[0]})
        if kind == "node":
            cluster.add_node(num_cpus=1, object_store_memory=80 * 1024**2)  # type: ignore[attr-defined]
    status, shown, err = grid.finish(process)
    assert status == 0, shown + err
    assert not kinds
    assert Parts(out).legs("encode-000").end == "done"
    found = grid.records(out)
    assert len(found) == rows * len(RunSpec.parse({"seeds": seeds}).seeds)
    assert all(record.ok for record in found)
    assert grid.bits(out) == grid.bits(data / "whole")
    assert grid.tables(out) == grid.tables(data / "whole")


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")
def test_a_killed_task_and_a_lost_node(cluster: object, tmp_path: Path) -> None:
    disturbed(cluster, grid.write_data(tmp_path), 2, "1-20", 2, 2)


@pytest.mark.reliability
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")
def test_fourteen_losses(cluster: object, tmp_path: Path) -> None:
    rows, count = max(1, round(6 * SHARE)), 2 * max(1, round(7 * SHARE))
    disturbed(cluster, grid.write_data(tmp_path), rows, "1-100", 8, count)
