"""A run that is cut into parts: the cut, the parts' files, an executor of the standard library."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import REPO, Cli
from tests.engine.test_encoded_once import COUNTED
from tests.reliability import grid, test_disk_full
from tests.results import samples
from vipbench.engine.cluster import sealed, slurm
from vipbench.engine.cluster.collect import Collector
from vipbench.engine.cluster.cut import count, cut
from vipbench.engine.cluster.folder import TIME_LIMIT, ChangedError, EncodePart, Legs, Part, Parts
from vipbench.engine.cluster.follow import Follower
from vipbench.engine.cluster.prepare import prepare
from vipbench.engine.cluster.queue import Job
from vipbench.engine.cluster.results import PartResults
from vipbench.engine.cluster.run import cancel, collect
from vipbench.engine.cluster.slurm import ranges
from vipbench.engine.cluster.status import status as status_of
from vipbench.engine.cluster.work import _Leave
from vipbench.engine.features.features import ENCODE_BATCH
from vipbench.errors import UsageError
from vipbench.results.store.lock import StoreError
from vipbench.results.store.store import Store
from vipbench.results.store.submissions import submitted_by
from vipbench.runspec.executor import executor_of, with_flags
from vipbench.runspec.run import RunSpec


def cells(spec: RunSpec) -> set[tuple[object, ...]]:
    return {
        (b, d, m.label, k, s)
        for b in spec.backbones
        for d in spec.datasets
        for m in spec.methods
        for k in spec.shots
        for s in spec.seeds
    }


WHOLE = RunSpec.parse(
    {
        "backbones": "tiny-clip,openclip:RN50/openai",
        "datasets": "synthderm,npz:toy.npz,folder:other",
        "methods": "zero-shot,ncm,coop",
        "shots": "1,2",
        "seeds": "0-6",
        "symptoms": {"npz:toy.npz": "s.json"},
    }
)


@pytest.mark.parametrize("jobs", [1, 2, 3, 6, 7, 18, 20, 60, 1000])
def test_pieces_are_the_whole(jobs: int) -> None:
    pieces = cut(WHOLE, jobs)
    assert len(pieces) <= jobs
    assert len(pieces) == min(jobs, 2 * 3 * 3 * 7)
    every = [cell for piece in pieces for cell in cells(piece.spec)]
    assert len(every) == len(set(every)) == count(WHOLE) == 252
    assert set(every) == cells(WHOLE)
    for piece in pieces:
        assert piece.spec.shots == WHOLE.shots
        assert set(piece.spec.symptoms) == {"npz:toy.npz"} & set(piece.spec.datasets)
    # Cells without a support set go once: with seed 0, which is the one that they name.
    taken = [(p.spec.backbones, p.spec.datasets, p.spec.methods, p.without_support) for p in pieces]
    rows = [(b, d, m.label) for b, d, methods, _ in taken for m in methods]
    own = [(b, d, m.label) for b, d, methods, without in taken for m in methods if without]
    assert len(own) == len(set(own))
    assert set(own) == set(rows)
    assert all(0 in p.spec.seeds for p in pieces if p.without_support)


def test_what_is_tested_on_other_data_is_not_cut_apart() -> None:
    transfer = WHOLE.model_copy(
        update={
            "protocol": RunSpec.parse({"datasets": "a,b", "protocol": "cross-dataset"}).protocol
        }
    )
    pieces = cut(transfer, 12)
    assert {piece.spec.datasets for piece in pieces} == {WHOLE.datasets}
    assert len(pieces) == 12


def test_executors_are_read_as_flags_and_suites_give_them() -> None:
    suite = executor_of({"name": "slurm", "jobs": 32, "time": "4h", "gpus": 1, "setup": ["a b"]})
    assert (suite.time, suite.setup) == ("240", ("a b",))
    spec = RunSpec.parse({"executor": suite.as_yaml()})
    assert RunSpec.from_yaml_text(spec.to_yaml()).executor == suite
    more = with_flags(suite, None, 8, "partition=gpu,time=1-00:00:00,mem=24g,at_once=2")
    assert more is not None
    assert (more.jobs, more.gpus, more.partition, more.mem) == (8, 1, "gpu", "24G")
    assert with_flags(suite, "ray", None, None) == executor_of("ray")
    assert with_flags(None, "slurm", None, None, True) == executor_of(
        {"name": "slurm", "cache_local": "true"}
    )
    assert executor_of({"name": "slurm", "setup": "a\nb c\n"}).setup == ("a", "b c")
    excluded = with_flags(None, "slurm", None, "exclude='n1,n2',gres=gpu:a100:2")
    assert excluded is not None
    assert (excluded.exclude, excluded.all_gpus, suite.all_gpus) == ("n1,n2", 2, 1)
    for gres, gpus in (("shard:2", 0), ("gpu", 1), ("gpu:3,nic:2", 3), ("tmp:1,gpu:h100", 1)):
        assert executor_of({"name": "slurm", "gres": gres}).all_gpus == gpus
    assert executor_of({"name": "slurm", "time": 0}).seconds is None
    times = {"90": 5400, "90m": 5400, "2d": 172800, "1:30": 90, "1:00:30": 3630, "1-12": 129600}
    for text, seconds in times.items():
        assert executor_of({"name": "slurm", "time": text}).seconds == seconds
    for wrong, named in (
        ({"name": "slrum"}, "slurm"),
        ({"name": "slurm", "partitoin": "x"}, "partition"),
        ({"name": "slurm", "time": "soon"}, "soon"),
        ({"name": "slurm", "jobs": 0}, "0"),
        ({"name": "slurm", "cache_local": "perhaps"}, "perhaps"),
        ({"name": "ray", "cpus": 2, "partition": "gpu"}, "partition"),
        ({"name": "a:b", "setup": ["x"]}, "setup"),
        ({"name": "slurm", "partition": "gpu --error=/home/x/.bashrc"}, "one word"),
    ):
        with pytest.raises(UsageError, match=named):
            executor_of(wrong)
    for given in ((3, None), (None, "gpus=1"), (None, None, True)):
        with pytest.raises(UsageError, match="--executor"):
            with_flags(None, None, *given)


def test_ranges_are_written_as_an_array_takes_them() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"


def test_logs_lie_in_folders_with_any_name_that_slurm_can_have() -> None:
    # Slurm replaces %a by the number of a task.
    assert slurm.log_pattern(Parts(Path("/x/50%a")), "%3a") == "/x/50%%a/parts/%3a.log"
    for name in ("/x/a\\b", "/x/a\nb"):
        with pytest.raises(UsageError, match="--out"):
            slurm.log_pattern(Parts(Path(name)), "%3a")


def test_a_stack_is_halved_after_two_legs_without_a_cell() -> None:
    def leg(stack: int, batches: int) -> dict[str, object]:
        return {"stack": stack, "batches": batches, "most": 12, "end": None}

    assert Legs(()).stack(64) == 64
    assert Legs((leg(64, 0),)).stack(64) == 12
    assert Legs((leg(64, 0), leg(12, 0))).stack(64) == 6
    assert Legs((leg(64, 0), leg(12, 0), leg(6, 1), leg(6, 0))).stack(64) == 6
    legs = [leg(12, 0), leg(12, 0), leg(6, 0), leg(6, 0), leg(3, 0), leg(3, 0), leg(1, 0)]
    assert Legs(tuple(legs)).stack(64) == 1
    assert Legs((*legs, leg(1, 0))).stack(64) == 0
    # Given up, and started again by a person who raised the time.
    legs += [leg(1, 0), {**leg(0, 0), "end": {"status": "given up"}}]
    assert Legs(tuple(legs)).stack(64) == 64
    assert Legs((*legs, leg(64, 0), leg(12, 0))).stack(64) == 6


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: d[:70], lambda d: d[:90] + b"!"])
def test_damaged_files_are_known(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    file = tmp_path / "x.done"
    sealed.write(file, b"body" * 100, {"key": "ok"}, sync=True)
    assert sealed.read(file) == ({"key": "ok"}, b"body" * 100)
    assert sealed.read_head(file) == {"key": "ok"}
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(sealed.DamagedError, match=r"x\.done"):
        sealed.read(file)


# Of the second row no cell is possible: the data has no symptoms.
ROWS = "zero-shot,symptoms-max,steady[seconds=0.4]"


def command(data: Path, out: Path, *more: str, seeds: str = "1-4") -> subprocess.Popen[str]:
    env = {"PYTHONPATH": f"{REPO}:{Path(__file__).parent}", "VIPBENCH_CLUSTER_PACE": "0.05"}
    env["VIPBENCH_CONFIG"] = str(data / "config")
    return grid.start(data, out, ROWS, *more, seeds=seeds, env=env)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, and `whole`, the results of one local run."""
    data = grid.write_data(tmp_path_factory.mktemp("parts"))
    status, _, err = grid.finish(command(data, data / "whole"))
    assert status == 0, err
    return data


def test_an_executor_of_the_standard_library(alone: Path, cli: Cli) -> None:
    out = alone / "pool"
    pool = ("--executor", "pools:two_threads", "--jobs", "3")
    process = command(alone, out, *pool)
    # The parts' files arrive; their driver is killed, and one of the files is spoilt.
    until = time.monotonic() + 100
    while not (found := sorted(out.glob("parts/*/*.done"))) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert found
    content = bytearray(found[0].read_bytes())
    content[len(content) // 2] ^= 1
    (out / "results.sqlite").unlink(missing_ok=True)  # the collector may have been quicker
    found[0].write_bytes(content)
    status, refused, err = grid.finish(command(alone, out, *pool))
    assert status == 0, refused + err
    assert found[0].name in refused
    assert grid.bits(out) == grid.bits(alone / "whole")
    assert grid.tables(out) == grid.tables(alone / "whole")
    with Store(out, readonly=True) as mine, Store(alone / "whole", readonly=True) as theirs:
        assert [c.slot for c in mine.plan()] == [c.slot for c in theirs.plan()]
    # Methods without a support set were asked for once, and nothing was done twice.
    shown = cli("status", out, "--json")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert sum(part["done"] for part in json.loads(shown.stdout)["parts"]) == 5
    parts = Parts(out)
    assert not [file for number in parts.parts() for file in parts.batches(number)]


def test_a_part_is_refused_where_it_must_not_run(alone: Path, cli: Cli) -> None:
    out = alone / "refused"
    pool = ("--executor", "pools:two_threads", "--jobs", "2")
    process = command(alone, out, *pool)
    while not (out / "suite.yaml").exists() and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    file = out / "parts" / "run.json"
    run = json.loads(file.read_text())
    file.write_text(json.dumps({**run, "executor": {**run["executor"], "gpus": 1}}))
    refused = cli("work", out, "--part", "0", env={"CUDA_VISIBLE_DEVICES": ""})
    assert refused.returncode == 3
    assert "CUDA_VISIBLE_DEVICES" in refused.stdout
    # What the scheduler gave is passed on as it is, and computed with or not at all.
    given = "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f,GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"
    mine = {"VIPBENCH_CONFIG": str(alone / "config")}
    refused = cli("work", out, "--part", "0", env=mine | {"CUDA_VISIBLE_DEVICES": given})
    assert refused.returncode == 2
    assert refused.stdout.count(given) == 2  # at its beginning, and in the message
    parts = Parts(out)
    assert parts.legs(0).begun[-1]["gpu"] == given
    assert parts.batches(0) == []
    # The job has no time for a second batch: it ends after the first one, to be started again.
    file.write_text(json.dumps(run))
    soon = {"SLURM_JOB_END_TIME": f"{time.time() + 25:.0f}", "VIPBENCH_MOST_STACKED": "1"}
    assert cli("work", out, "--part", "1", env=mine | soon).returncode == 75
    assert len(parts.batches(1)) == 1
    file.write_text(json.dumps({**run, "package": "0" * 64}))
    refused = cli("work", out, "--part", "0")
    assert refused.returncode == 3
    assert "vipbench" in refused.stdout
    assert cli("work", out, "--part", "7").returncode == 2
    legs = out / "parts" / "001.legs"
    begun = {"what": "begin", "at": 1.0, "leg": 1, "stack": 1}
    altered = '{"what": "end", "at": 1}\n{"what": [], "at": 1}\n{"what": "broken", "at": 1}\n'
    legs.write_text(f"{json.dumps(begun)}\n{altered}" * 2)
    file.write_text(json.dumps(run))
    refused = cli("work", out, "--part", "1")
    assert refused.returncode == 3
    assert "part" in refused.stdout
    assert "given up" in cli("status", out).stdout
    assert cli("cancel", out).returncode == 0
    assert cli("work", out, "--part", "0").returncode == 3
    shown = cli("status", out)
    assert shown.returncode == 1
    assert "cancelled" in shown.stdout


RUN = {
    "schema": 1, "id": "01234567", "digest": "", "package": "", "executor": {"name": "ray"},
    "environment": {}, "grants": {}, "cwd": "/", "lead": 1, "encodes": [],
    "parts": [{"number": 0, "order": 0, "cells": 1, "without_support": True}],
}  # fmt: skip


class Queue:
    """An executor whose queue a test writes. answer: what `squeue` prints; None: it fails."""

    resubmits = True

    def __init__(self) -> None:
        self.answer: str | None = ""
        self.refuses = ""
        self.submitted: list[tuple[list[int], int]] = []

    def submit(
        self, numbers: Sequence[int], memory: int = 1, encodes: Sequence[EncodePart] = ()
    ) -> str:
        if self.refuses:
            raise UsageError(self.refuses)
        self.submitted.append(([*numbers], memory))
        return str(100 + len(self.submitted))

    def jobs(self) -> dict[int, Job] | None:
        return None if self.answer is None else slurm.read_queue(self.answer, lambda job: [0])

    def cancel(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


@pytest.fixture
def followed(empty: Parts) -> Iterator[tuple[Follower, Queue, list[float]]]:
    """A follower whose part was submitted and runs, its queue, and the time of its clock."""
    now, queue = [0.0], Queue()
    with Store(empty.out) as store:
        made = Follower(empty, queue, Collector(empty, store), print, clock=lambda: now[0])
        made.start()
        queue.answer = "101_0|RUNNING|n1|None"
        made.step()
        assert made.watched[0].state == "running"
        yield made, queue, now


def pass_time(follower: Follower, now: list[float], seconds: float) -> None:
    for _ in range(int(seconds)):
        now[0] += 1
        follower.step()


@pytest.mark.parametrize(
    ("last", "state", "memory"),
    [
        ("PREEMPTED|n1|None", "waiting", 1),
        ("NODE_FAIL|n1|None", "waiting", 1),
        ("BOOT_FAIL|n1|None", "waiting", 1),
        ("TIMEOUT|n1|TimeLimit", "waiting", 1),
        ("FAILED|n1|NonZeroExitCode", "waiting", 1),
        ("COMPLETED|n1|None", "waiting", 1),
        ("CANCELLED|n1|Preempted", "waiting", 1),
        ("OUT_OF_MEMORY|n1|OutOfMemory", "waiting", 2),
        ("CANCELLED|n1|None", "cancelled", 0),
        ("CANCELLED||None", "cancelled", 0),
        ("REQUEUE_HOLD|n1|None", "waiting", 0),
        ("SOMETHING_NEW|n1|None", "waiting", 1),
    ],
)
def test_what_becomes_of_a_part_by_the_last_state_of_its_job(
    followed: tuple[Follower, Queue, list[float]], last: str, state: str, memory: int
) -> None:
    follower, queue, now = followed
    # Tasks that never began are a line of their array.
    queue.answer = f"{'101' if '||' in last else '101_0'}|{last}"
    # Its last file may be seen late.
    pass_time(follower, now, 119)
    assert len(queue.submitted) == 1
    pass_time(follower, now, 3)
    assert follower.watched[0].state == state
    assert [(numbers, m) for numbers, m in queue.submitted[1:]] == ([([0], memory)] * bool(memory))


def test_a_part_without_memory_or_beginning_is_given_up(
    followed: tuple[Follower, Queue, list[float]],
) -> None:
    follower, queue, now = followed
    for state, submitted in (("OUT_OF_MEMORY", 2), ("OUT_OF_MEMORY", 2)):
        queue.answer = f"{100 + len(queue.submitted)}_0|{state}|n1|None"
        pass_time(follower, now, 122)
        assert len(queue.submitted) == submitted
    assert follower.watched[0].state == "given up"
    [sentence] = follower.unfinished()
    assert "out of memory" in sentence


def test_a_part_that_cannot_be_submitted_again(
    followed: tuple[Follower, Queue, list[float]], capsys: pytest.CaptureFixture[str]
) -> None:
    follower, queue, now = followed
    queue.answer, queue.refuses = "101_0|FAILED|n1|None", "no controller"
    pass_time(follower, now, 150)
    assert follower.watched[0].state == "left"
    queue.refuses = ""
    pass_time(follower, now, 60)
    assert follower.watched[0].state == "waiting"
    assert capsys.readouterr().out.count("no controller") == 1
    queue.answer, queue.refuses = "102_0|FAILED|n1|None", "no controller"
    with pytest.raises(UsageError, match="no controller"):
        pass_time(follower, now, 300)


def test_more_memory_than_there_is(
    followed: tuple[Follower, Queue, list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    follower, queue, now = followed
    monkeypatch.setattr(Follower, "_mem", lambda self: "200G")
    queue.answer, queue.refuses = "101_0|OUT_OF_MEMORY|n1|None", "no node has 400G"
    pass_time(follower, now, 300)
    [sentence] = follower.unfinished()
    assert "given up" in sentence
    assert "no node has 400G" in sentence


def test_a_silent_queue_ends_no_part(followed: tuple[Follower, Queue, list[float]]) -> None:
    follower, queue, now = followed
    for answer, seconds in ((None, 600), ("101_0|RUNNING|n1|None", 1), ("", 58)):
        queue.answer = answer
        pass_time(follower, now, seconds)
        assert follower.watched[0].state == "running"
    pass_time(follower, now, 3)
    assert follower.watched[0].state == "left"
    pass_time(follower, now, 118)
    assert len(queue.submitted) == 1
    pass_time(follower, now, 3)
    assert len(queue.submitted) == 2
    # The queue shows the earlier job for a while.
    queue.answer = "101_0|FAILED|n1|None"
    pass_time(follower, now, 30)
    assert follower.watched[0].state == "waiting"
    for _ in range(2):
        queue.answer = f"{100 + len(queue.submitted)}_0|FAILED|n1|None"
        pass_time(follower, now, 122)
    assert len(queue.submitted) == 3
    [sentence] = follower.unfinished()
    assert str(follower.parts.file(0, ".log")) in sentence


small_disk = test_disk_full.small_disk


@pytest.fixture
def empty(tmp_path: Path) -> Parts:
    """A run with one part of which nothing was done."""
    parts = Parts(tmp_path / "out")
    parts.folder.mkdir(parents=True)
    RunSpec.parse({"out": str(parts.out)}).save()
    (parts.folder / "run.json").write_text(json.dumps(RUN))
    return parts


def test_the_first_of_two_results_stays_and_damaged_files_are_named(empty: Parts) -> None:
    results = PartResults(empty, empty.part(0), print)
    pairs = [samples.scored(i) for i in range(6)]
    for record, predictions in pairs:
        results.add_many([(record, predictions)])
    # The same cells once more: two as they were, one with another last bit.
    other = np.array(pairs[2][1].scores)
    other.view(np.uint32)[0, 0] ^= 1
    again = dataclasses.replace(pairs[2][1], scores=other)
    results.add_many([pairs[0], pairs[1], (pairs[2][0], again)])
    files = empty.batches(0)
    files[4].write_bytes(files[4].read_bytes()[:-7])
    flipped = bytearray(files[5].read_bytes())
    flipped[-30] ^= 4
    files[5].write_bytes(flipped)
    notes: list[str] = []
    with Store(empty.out) as store:
        collector = Collector(empty, store, notes.append)
        assert collector.collect([0]) == 4
        assert collector.twice == {pairs[2][0].key}
        kept = store.predictions(pairs[2][0].key)
        assert kept is not None
        assert kept.scores.tobytes() == pairs[2][1].scores.tobytes()
    for file, note in zip(files[4:6], notes, strict=True):
        assert str(file) in note
        assert "again" in note
    # The next leg has the damaged cells to do, and no other.
    said: list[str] = []
    left = PartResults(empty, empty.part(0), said.append)
    cells = samples.planned([record for record, _ in pairs], status="todo")
    assert [left.judge(cell).status for cell in cells] == ["done"] * 4 + ["todo"] * 2


def test_what_is_collected_of_an_ended_part_is_removed(empty: Parts) -> None:
    pairs = [samples.scored(0), (samples.make(seed=1, error="ValueError"), None)]
    results = PartResults(empty, empty.part(0), print)
    empty.note(0, "begin", leg=1, stack=1)
    results.save_plan(samples.planned([record for record, _ in pairs], status="todo"))
    assert not results.complete
    results.add_many(pairs)
    assert results.complete
    # While the part is at work, its files stay; the error counts as new each time.
    assert len(collect(empty.out, print).new) == 2
    assert len(empty.batches(0)) == 1
    empty.note(0, "end", status="done", message="")
    assert len(collect(empty.out, print).new) == 1
    assert empty.batches(0) == []
    assert len(collect(empty.out, print).new) == 0
    assert empty.done() == {record.key: record.status for record, _ in pairs}
    # A person gives the command again: its next leg is no preemption. Nor is one that follows a
    # time limit.
    empty.note(0, "begin", leg=2, stack=1)
    assert status_of(empty.out).restarts == 0
    empty.note(0, "end", status=TIME_LIMIT, message="")
    empty.note(0, "begin", leg=3, stack=1)
    empty.note(0, "begin", leg=4, stack=1)
    found = status_of(empty.out)
    assert (found.restarts, found.time_limits) == (1, 1)
    assert "; 1 preemption cost " in found.line()
    assert "; 1 time limit" in found.line()


def test_imported_results_count_where_asked(empty: Parts) -> None:
    record, predictions = samples.scored(0)
    with Store(empty.out) as store:
        store.add(submitted_by(record, "somebody"), predictions)
        assert Collector(empty, store, imported=True).statuses == {record.key: "ok"}
        collector = Collector(empty, store)
        assert collector.statuses == {}
        collector.note_done()
        results = PartResults(empty, empty.part(0), print)
        (cell,) = samples.planned([record], status="todo")
        assert results.judge(cell).status == "todo"
        results.add_many([(record, predictions)])
        assert collector.collect([0]) == 1
        assert store.status(imported=False) == {record.key: "ok"}
    assert collect(empty.out, print).statuses == {record.key: "ok"}


@pytest.mark.parametrize(
    ("end", "signal_at", "batches", "left_at"),
    [
        # Slurm may send the signal a minute early: three more batches end in time.
        (600, 420, 30, 570),
        # Without a signal, too, no batch begins that would end too late.
        (600, None, 200, 400),
        # One that is too long is stopped where the time is over.
        (600, 480, 1000, 570),
        # A preemption: nobody says how much time there is.
        (9000, 100, 1000, 100),
        # Outside Slurm the signal alone tells: 120 s are left.
        (None, 100, 30, 180),
        (None, 100, 1000, 190),
    ],
)
def test_a_job_leaves_as_late_as_it_can(
    empty: Parts,
    monkeypatch: pytest.MonkeyPatch,
    end: float | None,
    signal_at: float | None,
    batches: float,
    left_at: float,
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "time", lambda: 5000 + now)
    leave = _Leave(empty, 120, None if end is None else 5000 + end)
    while not leave():
        now += 1
        assert now < 10_000
        if now == signal_at:
            leave.handle(signal.SIGUSR2, None)
        if now % batches == 0:
            leave.kept(batches)
    assert (now, leave.why) == (left_at, "time")


def test_no_more_jobs_are_submitted_than_the_user_may_have(
    empty: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {"scontrol": "MaxArraySize = 1001", "sacctmgr": "40", "squeue": "\n".join("abc")}
    folder = empty.folder / "bin"
    folder.mkdir()
    for name, answer in answers.items():
        (folder / name).write_text(f"#!/bin/sh\ncat <<'E'\n{answer}\nE\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    assert slurm.limits() == (1001, 37)
    (empty.folder / "run.json").unlink()
    given = {"methods": "ncm", "datasets": "synthderm", "seeds": "1-50", "backbones": "tiny-clip"}
    spec = RunSpec.parse({**given, "executor": {"name": "slurm", "jobs": 50}, "out": empty.out})
    lines: list[str] = []
    with Store(empty.out) as store:
        run = prepare(empty, spec, store, slurm.limits(), lines.append, False)
    assert len(run["parts"]) == 36  # beside one that encodes
    assert any("36 parts" in line for line in lines)


def test_data_of_one_machine_is_refused(empty: Parts) -> None:
    given = {"executor": "slurm", "data_root": "/usr/../tmp", "out": str(empty.out)}
    with Store(empty.out) as store, pytest.raises(UsageError, match="/tmp"):
        prepare(empty, RunSpec.parse(given), store, slurm.Limits(), print, False)


@pytest.mark.parametrize("free", [4096, pytest.param(-1, marks=pytest.mark.reliability)])
def test_a_full_disk_is_named_and_costs_one_batch(
    empty: Parts, small_disk: Path, free: int
) -> None:
    for turn in range(1 if free > 0 else 20):
        space = free if free > 0 else 4096 * (turn % 2)
        fill_the_disk(empty, small_disk / str(turn), space)


def fill_the_disk(empty: Parts, folder: Path, free: int) -> None:
    small_disk = folder.parent
    parts = Parts(folder / "out")
    shutil.copytree(empty.out, parts.out)
    results = PartResults(parts, parts.part(0), print)
    pairs = [samples.scored(i) for i in range(40)]
    results.add_many(pairs[:20])
    test_disk_full.leave(small_disk, free)
    with pytest.raises(OSError, match=str(parts.folder)):
        results.add_many(pairs[20:])
    assert len(list(parts.file(0, "").iterdir())) == 1
    (small_disk / "ballast").unlink()
    again = PartResults(parts, parts.part(0), print)
    cells = samples.planned([record for record, _ in pairs], status="todo")
    assert [again.judge(cell).status for cell in cells] == ["done"] * 20 + ["todo"] * 20
    again.add_many(pairs[20:])
    with Store(parts.out) as store:
        assert Collector(parts, store).collect([0]) == 40
    shutil.rmtree(folder)


def kill_in_transaction(out: Path) -> bool:
    """Collect, killed while its transaction is open; whether that came about."""
    journal = out / "results.sqlite-journal"
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "vipbench", "collect", str(out)],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    while process.poll() is None:
        if journal.exists():
            process.kill()
            return process.wait() == -signal.SIGKILL
    return False


def collect_among_kills(out: Path, kills: int) -> None:
    """Batches of 200 records arrive; their collector is killed within its transaction."""
    RunSpec.parse({"out": str(out)}).save()
    parts = Parts(out)
    parts.folder.mkdir()
    part = Part(0, 0, 200, True)
    run = RUN | {"parts": [dataclasses.asdict(part)]}
    (parts.folder / "run.json").write_text(json.dumps(run))
    results = PartResults(parts, part, print)
    expected = {}
    for start in range(0, 200, 20):
        batch = [samples.scored(i) for i in range(start, start + 20)]
        results.add_many(batch)
        expected |= {record.key: predictions for record, predictions in batch}
    taken = 0
    for _ in range(4 * kills):
        taken += kill_in_transaction(out)
        if taken == kills:
            break
        if (out / "results.sqlite").exists():
            with contextlib.suppress(StoreError), Store(out, readonly=True) as store:
                assert len(store.status()) in (0, 200)
    assert taken
    done = subprocess.run(
        [sys.executable, "-P", "-m", "vipbench", "collect", str(out)],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with Store(out, readonly=True) as store:
        assert set(store.status()) == expected.keys()
        for key, predictions in expected.items():
            kept = store.predictions(key)
            assert kept is not None
            assert (kept.scores == predictions.scores).all()


def test_a_collector_killed_within_its_transaction(tmp_path: Path) -> None:
    collect_among_kills(tmp_path, 10)


@pytest.mark.reliability
@pytest.mark.timeout(600)
def test_a_collector_killed_fifty_times(tmp_path: Path) -> None:
    for turn in range(10):
        (tmp_path / str(turn)).mkdir()
        collect_among_kills(tmp_path / str(turn), 5)


@pytest.mark.parametrize("name", ["id", "parts", "encodes", "executor", "grants", "cwd", "lead"])
@pytest.mark.parametrize("value", [None, 5, [], [{"number": "x"}], "../x"])
def test_an_altered_run_is_refused(tmp_path: Path, name: str, value: object) -> None:
    if (name, value) in (("lead", 5), ("cwd", "../x"), ("encodes", [])):
        return
    parts = Parts(tmp_path)
    parts.folder.mkdir()
    (parts.folder / "run.json").write_text(json.dumps(RUN))
    assert parts.parts()
    (parts.folder / "run.json").write_text(json.dumps({**RUN, name: value}))
    with pytest.raises(UsageError, match=r"run\.json"):
        parts.parts()


def test_parts_are_planned_again_where_what_they_read_has_changed(
    empty: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIPBENCH_ALLOW_CODE", "1")
    data = grid.write_data(tmp_path)
    (empty.folder / "run.json").unlink(missing_ok=True)
    grid_of = {"methods": "ncm,steady", "shots": 1, "seeds": 1, "backbones": "tiny-clip"}
    place = {"datasets": f"npz:{data / 'toy.npz'}", "plugins_dir": str(data / "plugins")}
    executor = {"name": "pools:two_threads", "jobs": 2}
    spec = RunSpec.parse({**grid_of, **place, "executor": executor, "out": str(empty.out)})

    def planned_again() -> bool:
        with Store(empty.out) as store:
            run = prepare(empty, spec, store, slurm.Limits(), lambda line: None, alive=False)
        plans = [empty.file(part["number"], ".plan") for part in run["parts"]]
        there = [plan.exists() for plan in plans]
        assert len(set(there)) == 1
        for plan in plans:
            plan.touch()
        return not there[0]

    notes: list[str] = []

    def changed() -> bool:
        notes.clear()
        with Store(empty.out) as store:
            prepare(empty, spec, store, slurm.Limits(), notes.append, alive=True)
        return bool(notes)

    assert planned_again()
    assert not planned_again()
    for file in ("toy.yaml", "toy.npz", "plugins/steady.py"):
        with (data / file).open("ab") as opened:
            opened.write(b"\n")
        assert changed()
        assert planned_again()
        assert not changed()
        assert not planned_again()
    # One of the parts was refused since others had planned other data.
    empty.require_same({"dataset 'toy'": "0" * 64})
    with pytest.raises(ChangedError, match="dataset 'toy'"):
        empty.require_same({"dataset 'toy'": "1" * 64})
    assert planned_again()
    assert not planned_again()


def test_a_copy_of_a_folder_leaves_the_jobs_of_the_original_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, calls = Parts(tmp_path / "first"), tmp_path / "calls"
    first.folder.mkdir(parents=True)
    run = {**RUN, "executor": {"name": "slurm"}, "out": str(first.out)}
    (first.folder / "run.json").write_text(json.dumps(run))
    for name in ("squeue", "scancel"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name} >> {calls}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    copy, link = Path(shutil.copytree(first.out, tmp_path / "copy")), tmp_path / "link"
    with pytest.raises(UsageError, match=f"vipbench cancel {first.out}"):
        cancel(copy)
    assert not Parts(copy).cancelled
    assert [part.state for part in status_of(copy).parts] == ["not begun"]
    assert not calls.exists()
    # The same folder under another name, and one that was moved, have their jobs.
    link.symlink_to(first.out)
    assert cancel(link) == 1
    assert cancel(first.out.rename(tmp_path / "moved")) == 1
    assert calls.read_text().split() == ["scancel"] * 4


def test_images_are_encoded_once_for_all_parts(tmp_path: Path, cli: Cli) -> None:
    plugins, passes, out = tmp_path / "plugins", tmp_path / "passes", tmp_path / "out"
    plugins.mkdir()
    (plugins / "counted.py").write_text(COUNTED)
    spec = RunSpec.parse(
        {"backbones": "counted", "datasets": "synthderm", "methods": "ncm,coop[epochs=1]",
         "shots": "2", "seeds": "1,2", "views": 2, "plugins_dir": plugins, "out": out,
         "executor": {"name": "pools:two_threads", "jobs": 2, "cache_local": True}}
    )  # fmt: skip
    parts = Parts(out)
    with Store(out) as store:
        prepare(parts, spec, store, slurm.Limits(), print, False)
    assert parts.encode(0).parts == (0, 1)
    local = tmp_path / "node"
    local.mkdir()
    env = {"PASSES": str(passes), "TMPDIR": str(local), "VIPBENCH_CACHE": str(out / "cache")}

    def work(*which: str) -> list[str]:
        passes.write_text("")
        done = cli("work", out, *which, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        return passes.read_text().split()

    first = work("--encode", "0")
    # Evaluation views of 300 test images, of the support and validation images, and two views of
    # each support image, each once but for what fills the last batch.
    assert len(set(first)) > 300 + 2 * 2 * 6 * 2
    assert len(first) == -len(set(first)) // ENCODE_BATCH * -ENCODE_BATCH
    assert parts.legs("encode-000").end == "done"
    assert work("--part", "0") == []
    [copies] = local.glob("vipbench-*-*")
    blocks = {file.name for file in (out / "cache").rglob("*.safetensors")}
    assert blocks >= {file.name for file in copies.rglob("*.safetensors")} > set()
    # A part that finds no features encodes them itself.
    for folder in (out / "cache", copies):
        for file in folder.rglob("*.safetensors"):
            file.unlink()
    assert len(set(work("--part", "1"))) > 300
    # Other weights than the first part found.
    hashes = [file for file in (out / "parts" / "hashes").iterdir() if file.stat().st_size]
    [file] = (file for file in hashes if file.read_text().startswith("backbone"))
    assert len(hashes) == 2  # and the dataset's
    file.write_text(file.read_text().replace("\t", "\t0"))
    changed = cli("work", out, "--part", "0", env=env)
    assert changed.returncode == 3
    assert "backbone 'tiny-clip'" in changed.stdout
    for wrong in ((), ("--part", "0", "--encode", "0"), ("--encode", "3")):
        assert cli("work", out, *wrong).returncode == 2
