"""A run on a real Slurm that is disturbed: nothing lost, nothing twice, every score to the bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import slurm
from tests.reliability import grid
from vipbench.engine.cluster.folder import Parts
from vipbench.engine.seeding import cell_generator

REPO = Path(__file__).resolve().parents[2]

# Which commands of Slurm the run calls is written down; `broken` makes them fail. Where `fatal` is,
# the driver is killed between a submission and its note.
WRAPPER = """\
#!/bin/sh
echo "$(date +%s.%N) $0 $*" >> {log}
test -e {broken} && exit 1
case $0 in *sbatch) if test -e {fatal}; then {real} "$@"; kill -9 $PPID; exit; fi ;; esac
exec {real} "$@"
"""
PACE = 0.05

# Ends its worker in the cell of one seed.
FATAL = """
import os
import time
from dataclasses import dataclass

import torch

import vipbench
from vipbench import api


class Fatal(api.Method):
    name = "fatal"
    kind = "TF"
    needs = frozenset()

    @dataclass(frozen=True)
    class HParams(api.HParams):
        at: int = 0
        seconds: float = 0.0

    def prepare(self, support):
        time.sleep(self.hparams.seconds)
        if self.task.generator("fatal").initial_seed() % 10**6 == self.hparams.at:
            os.kill(os.getpid(), 9)
        rows = [support.plain[support.labels == c].mean(0) for c in range(support.n_classes)]
        self.means = torch.stack(rows)

    def forward(self, x):
        return x @ self.means.T


@vipbench.hookimpl
def register_methods(register):
    register(Fatal)
"""


class Bench:
    """A Slurm, a folder for runs, and the command line in front of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.slurm = slurm.Slurm(folder / "slurm")
        self.broken, self.fatal, self.log = folder / "broken", folder / "fatal", folder / "calls"
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        for name in ("squeue", "sbatch"):
            real = shutil.which(name)
            text = WRAPPER.format(log=self.log, broken=self.broken, fatal=self.fatal, real=real)
            (bin_folder / name).write_text(text)
            (bin_folder / name).chmod(0o755)
        (folder / "plugins").mkdir()
        (folder / "plugins" / "steady.py").write_text(grid.PLUGIN)
        (folder / "deadly").mkdir()
        (folder / "deadly" / "fatal.py").write_text(FATAL)
        kept = {k: v for k, v in self.slurm.env.items() if not k.startswith("VIPBENCH_")}
        self.env = kept | {
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPO),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
            "VIPBENCH_CACHE": str(folder / "features"),
            "VIPBENCH_CONFIG": str(folder / "config"),
            "VIPBENCH_CLUSTER_PACE": str(PACE),
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """`vipbench` with these arguments, started."""
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "vipbench", *arguments],
            cwd=self.folder,
            env=self.env,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def call(self, *arguments: str) -> tuple[int, str, str]:
        """Its exit status and output."""
        return grid.finish(self.start(*arguments))

    def run(
        self, out: str, rows: str, seeds: str, *more: str, plugins: str = "plugins"
    ) -> tuple[str, ...]:
        """The arguments of a run."""
        grid_of = ("--methods", rows, "--shots", "1", "--seeds", seeds, "--views", "none")
        place = ("--backbones", "tiny-clip", "--datasets", "synthderm", "--device", "cpu")
        return ("run", *grid_of, *place, "--plugins-dir", plugins, "--out", out, *more)

    def calls(self, command: str) -> list[float]:
        """When one of Slurm's commands was called."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [float(line.split()[0]) for line in lines if line.split()[1].endswith(command)]

    def job_name(self, out: str) -> str:
        """That of the parts' jobs."""
        return f"vipbench-{Parts(self.folder / out).run()['id']}"

    def planned(self, out: str) -> bool:
        """Whether the last leg of part 0 knows its cells."""
        last = Parts(self.folder / out).legs(0).last
        return last is not None and "most" in last

    def works(self, task: str) -> list[int]:
        """The processes of `vipbench work` of a task of an array."""
        number = task.partition("_")[2]
        return [
            pid
            for pid, words, environment in slurm.processes()
            if f"vipbench work {self.folder}" in words
            and f"SLURM_ARRAY_TASK_ID={number}" in environment
        ]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    if reason := slurm.missing():
        pytest.skip(f"no Slurm: {reason}")
    # The path of a socket may have little more than 100 characters.
    made = Bench(tmp_path_factory.mktemp("s"))
    made.slurm.start()
    try:
        yield made
    finally:
        made.slurm.stop()


def disturb(bench: Bench, kind: str, task: str, node: str) -> None:
    """One disturbance of a task that runs on a node."""
    call = bench.slurm.call
    if kind == "requeue":
        call("scontrol", "requeue", task, check=False)
    elif kind.startswith("preempt"):
        if kind == "preempt by cancel":
            call("scontrol", "update", "PartitionName=main", "PreemptMode=CANCEL")
        call("sbatch", "-p", "high", "-w", node, "-o", "/dev/null", "--wrap", "sleep 1")
        bench.slurm.wait(lambda: (task, node) not in bench.slurm.running(), 90, "not preempted")
        if kind == "preempt by cancel":
            call("scontrol", "update", "PartitionName=main", "PreemptMode=REQUEUE")
    elif kind == "kill":
        for pid in bench.works(task):
            slurm.end(pid, signal.SIGKILL)
    elif kind == "limit":
        call("scancel", "--batch", "--signal=USR2", task, check=False)
    elif kind == "term":
        call("scancel", "--full", "--signal=TERM", task, check=False)
    elif kind == "node":
        bench.slurm.lose(node)
        # Slurm would notice in a minute.
        call("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")
        bench.slurm.bring_back(node)
        call("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)


KINDS = ("requeue", "preempt", "preempt by cancel", "kill", "node", "limit")


def campaign(
    bench: Bench, arguments: tuple[str, ...], kinds: list[str], drivers: int, patience: float = 400
) -> str:
    """Give the same command until it has done its work, among disturbances; returns its output."""
    rng, kinds, shown = random.Random(5), [*kinds], ""
    while True:
        process = bench.start(*arguments)
        while process.poll() is None and (kinds or drivers):
            time.sleep(rng.uniform(0.5, 2.5))
            running = bench.slurm.running()
            begun = [(task, node) for task, node in running if bench.works(task)]
            if drivers and len(kinds) % 2:
                drivers -= 1
                process.send_signal(signal.SIGKILL)
            elif begun and kinds:
                disturb(bench, kinds.pop(), *rng.choice(begun))
        status, out, err = grid.finish(process, timeout=patience)
        shown += out + err
        if status == 0:
            assert not kinds, "it was over before it was disturbed"
            return shown
        assert status == 137, shown


def check_same(bench: Bench, out: str, whole: str) -> None:
    found = grid.records(bench.folder / out)
    assert all(record.ok for record in found)
    assert len({record.key for record in found}) == len(found)
    assert grid.bits(bench.folder / out) == grid.bits(bench.folder / whole)
    assert grid.tables(bench.folder / out) == grid.tables(bench.folder / whole)


ROWS = ",".join(f"steady[tag={i},seconds=0.3]" for i in range(4))
SLURM = ("--executor", "slurm", "--slurm", "gpus=1,mem=500M,time=10m")


@pytest.mark.timeout(900)
def test_a_disturbed_run_is_the_undisturbed_one(bench: Bench) -> None:
    """80 cells, its driver killed at the worst moments, cancelled, resumed, five disturbances."""
    status, _, err = bench.call(*bench.run("whole", ROWS, "1-20"))
    assert status == 0, err
    arguments = bench.run("out", ROWS, "1-20", *SLURM, "--jobs", "2")
    started, before = time.monotonic(), len(bench.calls("squeue"))

    status, script, err = bench.call(*arguments, "--print-script")
    assert status == 0, err
    assert "#SBATCH --array=0-1" in script
    # No more parts than the cluster accepts.
    status, script, err = bench.call(
        *bench.run("a limit", ROWS, "1-40", *SLURM, "--jobs", "160"), "--print-script"
    )
    assert status == 0, err
    assert "#SBATCH --array=0-100" in script
    assert f"#SBATCH --output='{bench.folder}/a limit/parts/%3a.log'" in script
    assert not bench.calls("sbatch")
    # The first driver ends between submitting what encodes images and the parts, the second one
    # between the parts and its note of them. No command submits anything twice.
    bench.slurm.call("scontrol", "update", "NodeName=n1,n2", "State=DRAIN", "Reason=test")
    for submitted in (1, 2):
        bench.fatal.touch()
        assert bench.call(*arguments)[0] == 137
        assert len(bench.calls("sbatch")) == submitted
        bench.fatal.unlink()
    # A person ends the jobs: by Slurm's command before they begin, by vipbench's while they run.
    asked = len(bench.calls("squeue"))
    driver = bench.start(*arguments)
    bench.slurm.wait(lambda: len(bench.calls("squeue")) > asked + 1, 60, "the queue is not asked")
    bench.slurm.call("scancel", f"--name={bench.job_name('out')}")
    status, shown, err = grid.finish(driver)
    assert (status, "2 parts cancelled" in shown + err) == (1, True), shown + err
    assert len(bench.calls("sbatch")) == 2
    status, shown, err = bench.call(*arguments, "--submit-only")
    assert status == 0, err
    assert "vipbench status out" in shown
    assert "vipbench collect out" in shown
    assert len(bench.calls("sbatch")) == 3
    # Where no node is free Slurm may name that first.
    reasons = ("squeue", "-h", "-r", "-o", "%r")
    bench.slurm.wait(lambda: "Dependency" in bench.slurm.call(*reasons), 60, "no dependency")
    status, shown, _ = bench.call("status", "out")
    assert (status, "(Dependency)" in shown) == (3, True), shown
    assert "encode part 0" in shown
    bench.slurm.call("scontrol", "update", "NodeName=n1,n2", "State=RESUME")
    bench.slurm.wait(lambda: len(bench.slurm.running()) == 2, 100, "no part runs")
    assert bench.call("cancel", "out")[0] == 0
    bench.slurm.wait(lambda: not bench.slurm.running(), 15, "cancelled parts run on")
    status, shown, _ = bench.call("status", "out")
    assert (status, "2 cancelled" in shown) == (1, True), shown

    kinds = random.Random(3).sample(KINDS[:5], k=5)
    campaign(bench, arguments, kinds, drivers=1)
    took = time.monotonic() - started
    check_same(bench, "out", "whole")
    # The queue is asked every 30 s at most, once by each other command, and for what encodes.
    asked = len(bench.calls("squeue")) - before
    assert asked <= took / (30 * PACE) + 12, (asked, took)

    status, shown, _ = bench.call("status", "out", "--json")
    state = json.loads(shown)
    assert (status, state["state"]) == (0, "done")
    assert state["restarts"] >= 2
    assert sum(part["done"] for part in state["parts"]) == 80
    parts = Parts(bench.folder / "out")
    assert parts.legs("encode-000").end == "done"
    legs = [leg for number in parts.parts() for leg in parts.legs(number).begun]
    assert {leg["gpu"] for leg in legs} == {"0"}
    assert {leg["node"] for leg in legs} == {"n1", "n2"}
    print(f"{len(legs)} legs, {took:.0f} s")


def test_a_queue_that_cannot_be_asked_changes_nothing(bench: Bench) -> None:
    # Beside it, a part whose time is over twice without a new cell, and a method that ends its
    # worker: that cell alone is an error.
    at = cell_generator(1, 3)("fatal").initial_seed() % 10**6
    short = ("--executor", "slurm", "--slurm", "gpus=1,mem=500M,time=2m", "--jobs", "1")
    rows = f"fatal[at={at},seconds=0.8]"
    process = bench.start(*bench.run("silent", rows, "1-8", *short, plugins="deadly"))
    legs = Parts(bench.folder / "silent").legs
    for leg in (1, 2):
        bench.slurm.wait(lambda n=leg: len(legs(0).begun) == n and bench.slurm.running(), 60, "leg")
        [(task, _)] = bench.slurm.running()
        bench.slurm.wait(lambda: bench.planned("silent"), 60, "not planned")
        disturb(bench, "limit", task, "")
    submitted = len(bench.calls("sbatch"))
    bench.broken.touch()
    asked = len(bench.calls("squeue"))
    time.sleep(60 * PACE)
    bench.broken.unlink()
    status, out, err = grid.finish(process)
    assert status == 1, out + err
    found = grid.records(bench.folder / "silent")
    assert len(found) == 8
    (failed,) = (record for record in found if not record.ok)
    assert (failed.cell.method_name, failed.cell.seed) == ("fatal", 3)
    assert failed.error is not None
    assert failed.error.type == "WorkerDied"
    assert [leg["stack"] for leg in legs(0).begun] == [64, 8, 4]
    assert all(100 < leg["until"] - leg["at"] < 121 for leg in legs(0).begun)
    assert len(bench.calls("squeue")) > asked
    assert len(bench.calls("sbatch")) == submitted
    assert "resubmitted" not in out


# A share of what the long tests do, for a trial: 0.2 is 400 cells and 10 disturbances.
SHARE = float(os.environ.get("VIPBENCH_TRIAL", "1"))


@pytest.mark.reliability
@pytest.mark.timeout(3600)
def test_fifty_disturbances(bench: Bench) -> None:
    """2,000 cells in 20 parts."""
    parts = max(2, round(20 * SHARE))
    rows = ",".join(f"steady[tag={i},seconds=0.03]" for i in range(parts))
    status, _, err = grid.finish(bench.start(*bench.run("many-whole", rows, "1-100")), 1500)
    assert status == 0, err
    rng = random.Random(11)
    kinds = [rng.choice((*KINDS, "term")) for _ in range(round(50 * SHARE))]
    arguments = bench.run("many", rows, "1-100", *SLURM, "--jobs", str(parts))
    campaign(bench, arguments, kinds, drivers=round(20 * SHARE), patience=1500)
    check_same(bench, "many", "many-whole")


@pytest.mark.reliability
@pytest.mark.timeout(1800)
def test_a_time_limit_shorter_than_the_part(bench: Bench) -> None:
    """Slurm looks at limits every half minute, and the least one is a minute."""
    count = max(5, round(14 * SHARE))
    rows = ",".join(f"steady[tag={i},seconds=1.5]" for i in range(count))
    short = ("--executor", "slurm", "--slurm", "gpus=1,mem=500M,time=1m", "--jobs", "1")
    status, out, err = grid.finish(bench.start(*bench.run("legs", rows, "1-8", *short)), 900)
    assert status == 0, out + err
    legs = Parts(bench.folder / "legs").legs(0).begun
    assert len(legs) >= 3
    found = grid.records(bench.folder / "legs")
    assert (len(found), all(record.ok for record in found)) == (8 * count, True)


@pytest.mark.reliability
@pytest.mark.timeout(1800)
def test_a_stack_longer_than_a_leg_is_halved(bench: Bench) -> None:
    short = ("--executor", "slurm", "--slurm", "gpus=1,mem=500M,time=1m", "--jobs", "1")
    count = 16 if SHARE >= 1 else 8
    arguments = bench.run("stack", "steady[seconds=8]", f"1-{count}", *short)
    status, out, err = grid.finish(bench.start(*arguments), 1500)
    assert status == 0, out + err
    legs = Parts(bench.folder / "stack").legs(0).begun
    assert {leg["stack"] for leg in legs} >= {64, count // 2}
    assert len(grid.records(bench.folder / "stack")) == count


@pytest.mark.reliability
@pytest.mark.timeout(1800)
def test_ten_cancels(bench: Bench) -> None:
    """By a person's `scancel` and by `vipbench cancel`, in turn; the same command resumes each
    time."""
    rows = ",".join(f"steady[tag={i},seconds=0.5]" for i in range(4))
    assert bench.call(*bench.run("ended-whole", rows, "1-30"))[0] == 0
    arguments = bench.run("ended", rows, "1-30", *SLURM, "--jobs", "2")
    for number in range(10):
        driver = bench.start(*arguments)
        bench.slurm.wait(lambda: len(bench.slurm.running()) == 2, 100, "no part runs")
        time.sleep(1 + number % 3)
        if number % 2:
            bench.slurm.call("scancel", f"--name={bench.job_name('ended')}")
        else:
            assert bench.call("cancel", "ended")[0] == 0
        bench.slurm.wait(lambda: not bench.slurm.running(), 15, "cancelled parts run on")
        status, out, err = grid.finish(driver)
        assert (status, "2 parts cancelled" in out + err) == (1, True), out + err
        submitted = len(bench.calls("sbatch"))
        status, shown, _ = bench.call("status", "ended")
        assert (status, "2 cancelled" in shown) == (1, True), shown
        assert not bench.slurm.running()
        assert len(bench.calls("sbatch")) == submitted
    assert bench.call(*arguments)[0] == 0
    check_same(bench, "ended", "ended-whole")


@pytest.mark.reliability
@pytest.mark.timeout(1800)
def test_five_cells_that_end_their_worker(bench: Bench) -> None:
    ends = {seed: cell_generator(1, seed)("fatal").initial_seed() % 10**6 for seed in range(2, 7)}
    rows = ",".join(f"fatal[at={at}]" for at in ends.values())
    arguments = bench.run("deaths", rows, "1-8", *SLURM, "--jobs", "2", plugins="deadly")
    status, out, err = bench.call(*arguments)
    assert status == 1, out + err
    found = grid.records(bench.folder / "deaths")
    assert len(found) == 40
    failed = [record for record in found if not record.ok]
    assert {record.error.type for record in failed if record.error} == {"WorkerDied"}
    assert sorted(record.cell.seed for record in failed) == [*ends]
