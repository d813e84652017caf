"""Two drivers on one folder, and many who submit through one writer."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
from multiprocessing.queues import Queue
from pathlib import Path

import pytest

from tests.reliability import grid
from tests.results.samples import unscored
from vipbench.results.store.store import Store


def _submit(queue: Queue[int], numbers: range) -> None:
    for number in numbers:
        queue.put(number)


def submit(out: Path, processes: int, total: int) -> None:
    context = multiprocessing.get_context("spawn")
    queue: Queue[int] = context.Queue(maxsize=64)
    share = total // processes
    senders = [
        context.Process(target=_submit, args=(queue, range(i * share, (i + 1) * share)))
        for i in range(processes)
    ]
    for sender in senders:
        sender.start()
    with Store(out) as store:
        for _ in range(share * processes):
            store.add(*unscored(queue.get(timeout=60)))
    for sender in senders:
        sender.join()
        assert sender.exitcode == 0
    with Store(out, readonly=True) as store:
        keys = [r.key for r in store.records(history=False)]
    assert len(keys) == len(set(keys)) == share * processes
    assert set(keys) == {unscored(i)[0].key for i in range(share * processes)}


def test_two_processes_submit_through_one_writer(tmp_path: Path) -> None:
    submit(tmp_path, 2, 100)


@pytest.mark.reliability
@pytest.mark.timeout(1200)
def test_sixteen_processes_submit_ten_thousand(tmp_path: Path) -> None:
    submit(tmp_path, 16, 10_000)


def test_a_second_driver_is_refused_by_name(tmp_path: Path) -> None:
    data, out = grid.write_data(tmp_path), tmp_path / "out"
    rows = "steady[seconds=60]"
    first = grid.start(data, out, rows)
    deadline = time.monotonic() + 60
    while not (out / "results.lock").exists() or not (out / "results.lock").read_text():
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    status, _, err = grid.finish(grid.start(data, out, rows))
    assert status == 2
    assert re.search(f"{re.escape(str(out))}.*{first.pid} .*{os.uname().nodename}", err)
    first.send_signal(signal.SIGTERM)
    assert grid.finish(first)[0] == 143
