"""Several workers: one queue, each image encoded once, and nothing lost when one of them ends."""

from __future__ import annotations

import collections
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.reliability import grid
from vipbench.engine.features.cache import open_shelf
from vipbench.engine.machine import Share
from vipbench.errors import UsageError

ROWS = ",".join(f"steady[tag={i},seconds=0]" for i in range(6))
CELLS = 12


def start(data: Path, out: Path, rows: str = ROWS, workers: int = 2) -> subprocess.Popen[str]:
    log = data / f"{out.name}.log"
    more = ("--workers", str(workers))
    return grid.start(
        data,
        out,
        rows,
        *more,
        seeds="1-2",
        env={"STEADY_LOG": str(log), "STEADY_TOGETHER": str(workers)},
    )


def at_work(data: Path, out: Path) -> collections.Counter[int]:
    """How many cells each worker has begun."""
    log = data / f"{out.name}.log"
    return collections.Counter(map(int, log.read_text().split()) if log.exists() else ())


def wait_for(
    process: subprocess.Popen[str], what: Callable[[], object], seconds: float = 120
) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


def test_two_share_the_work_and_each_image_is_encoded_once(tmp_path: Path) -> None:
    data = grid.write_data(tmp_path, test=200)
    alone, two = data / "alone", data / "two"
    status, _, err = grid.finish(start(data, alone, workers=1))
    assert status == 0, err
    for block in (data / "features").rglob("*.safetensors"):
        block.unlink()
    status, message, err = grid.finish(start(data, two))
    assert status == 0, err
    assert "workers     2" in message
    begun = at_work(data, two)
    assert len(begun) == 2
    assert sum(begun.values()) == CELLS
    assert grid.bits(two) == grid.bits(alone)
    assert grid.tables(two) == grid.tables(alone)
    items = collections.Counter(
        (block.parent.name, *item)
        for block in (data / "features").rglob("*.safetensors")
        for item in load_file(block)["items"].tolist()
    )
    assert items
    assert set(items.values()) == {1}


def _fill(folder: Path, results: Any) -> None:
    shelf = open_shelf({"a": 1}, folder)
    items = [(i, 0) for i in range(5)]
    made = 0
    shelf.get(items)
    with shelf.filling():
        for item in items:
            if not shelf.get([item]):
                time.sleep(0.1)
                shelf.put([item], torch.full((1, 4), float(item[0])))
                made += 1
    results.put(made)


def test_who_comes_second_waits_and_finds_it_there(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    both = [context.Process(target=_fill, args=(tmp_path, results)) for _ in range(3)]
    for process in both:
        process.start()
    assert sorted(results.get(timeout=60) for _ in both) == [0, 0, 5]
    for process in both:
        process.join()


def test_a_lock_whose_holder_is_silent_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, held, done))
    holder.start()
    assert held.wait(60)
    monkeypatch.setattr("vipbench.engine.features.cache.PATIENCE", 1.0)
    waited: list[float] = []
    with open_shelf({"a": 1}, tmp_path).filling(lambda: waited.append(time.monotonic())):
        assert waited[-1] - waited[0] < 30
    done.set()
    holder.join()
    assert holder.exitcode == 0


def _hold(folder: Path, held: Any, done: Any) -> None:
    with open_shelf({"a": 1}, folder).filling():
        held.set()
        done.wait(60)


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.reliability), 2])
def test_killed_again_while_the_replacement_plans(tmp_path: Path, workers: int) -> None:
    data, out = grid.write_data(tmp_path), tmp_path / "out"
    process = start(data, out, "steady[seconds=0.5],steady[tag=1,seconds=0.5]", workers)
    wait_for(process, lambda: len(at_work(data, out)) == workers)
    first = set(grid.children(process.pid))
    victim = next(iter(at_work(data, out)))
    assert grid.kill(victim)
    # The replacement imports torch and plans for seconds; it is killed within the first.
    wait_for(process, lambda: set(grid.children(process.pid)) - first)
    time.sleep(0.3)
    [second] = set(grid.children(process.pid)) - first
    assert grid.kill(second)
    status, _, err = grid.finish(process)
    assert status == 0, err
    assert len(grid.hashes(out)) == 4


def test_interrupted_with_several_at_work(tmp_path: Path) -> None:
    data, out = grid.write_data(tmp_path), tmp_path / "out"
    process = start(data, out, ",".join(f"steady[tag={i},seconds=0.5]" for i in range(9)), 3)
    wait_for(process, lambda: len(at_work(data, out)) == 3)
    wait_for(process, lambda: len(grid.records(out)) >= 3)
    workers = set(grid.children(process.pid))
    begun = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    status, _, err = grid.finish(process)
    assert time.monotonic() - begun < 10
    assert status == 143, err
    grid.assert_gone(workers)
    kept = grid.records(out)
    assert 3 <= len(kept) < 18
    assert all(record.ok for record in kept)


@pytest.mark.parametrize(
    ("device", "workers", "there", "where"),
    [
        ("auto", None, 0, ["cpu"]),
        ("cpu", 3, 8, ["cpu", "cpu", "cpu"]),
        ("auto", None, 4, [0, 1, 2, 3]),
        ("cuda", 2, 4, [0, 1]),
        ("cuda:1,cuda:3", None, 4, [1, 3]),
        ("cuda:1,cuda:3", 5, 4, [1, 3, 1, 3, 1]),
        ("auto", 3, 1, [0, 0, 0]),
    ],
)
def test_which_worker_computes_where(
    device: str, workers: int | None, there: int, where: list[object]
) -> None:
    share = Share.of(device, workers, there)
    assert share.workers == len(where)
    devices = share.devices
    assert [devices[i % len(devices)] if devices else "cpu" for i in range(len(where))] == where
    assert share.on_device == max(where.count(one) for one in where)


@pytest.mark.parametrize(
    ("device", "there", "expected"),
    [
        ("cuda", 0, "--device cuda: "),
        ("cuda:0", 0, "CUDA"),
        ("cuda:2", 2, "cuda:2; .*cuda:0 to cuda:1"),
        ("cuda:0,cuda:1", 1, "cuda:1; .*cuda:0"),
    ],
)
def test_devices_that_are_not_there(device: str, there: int, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        Share.of(device, None, there)
