"""Ctrl-C and pre-emption at random moments: out in ten seconds, nothing lost, nobody left."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from tests.reliability import grid

ROWS = ",".join(f"steady[tag={i}]" for i in range(25))
SEEDS = "1-8"


def stop_at_random(data: Path, out: Path, rng: random.Random, latest: float) -> float:
    """One run, stopped at a random moment within `latest` seconds; returns the seconds to its
    end."""
    before = {r.key: r.created for r in grid.records(out) if r.ok}
    number = rng.choice((signal.SIGINT, signal.SIGTERM))
    twice = rng.random() < 0.3
    process = grid.start(data, out, ROWS, seeds=SEEDS)
    seen, until = set[int](), time.monotonic() + rng.uniform(0, latest)
    while time.monotonic() < until and process.poll() is None:
        seen |= set(grid.children(process.pid))
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()
    seen |= set(grid.children(process.pid))
    begun = time.monotonic()
    process.send_signal(number)
    if twice:
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(number)
    status, _, err = grid.finish(process, timeout=60)
    took = time.monotonic() - begun
    assert took < (5 if twice else 10)
    assert status == 128 + number, err
    assert "mistake in vipbench" not in err, err
    grid.assert_gone(seen, seconds=5)
    after = {r.key: r.created for r in grid.records(out)}
    assert before.items() <= after.items()
    assert all(r.ok for r in grid.records(out))
    return took


def stop_often(data: Path, times: int, seed: int, latest: float = 8) -> None:
    rng, longest = random.Random(seed), 0.0
    for turn in range(times):
        # A folder takes 200 cells, more than fit between some twenty stops.
        longest = max(longest, stop_at_random(data, data / f"out-{turn // 20}", rng, latest))
        if turn % 10 == 9 or turn + 1 == times:
            print(f"{turn + 1} stops, the slowest took {longest:.1f} s", flush=True)


def test_two_stops(tmp_path: Path) -> None:
    stop_often(grid.write_data(tmp_path), 2, seed=1, latest=5)


@pytest.mark.reliability
@pytest.mark.timeout(3000)
def test_a_hundred_stops(tmp_path: Path) -> None:
    stop_often(grid.write_data(tmp_path), 100, seed=2)


def test_signals_of_a_batch_system_end_no_worker(tmp_path: Path) -> None:
    """It sends them to every process of a job; what is at work is no cell's fault."""
    data = grid.write_data(tmp_path)
    process = grid.start(data, data / "out", "steady[seconds=0.5]", seeds="1-4")
    sent = 0
    while process.poll() is None:
        for worker in grid.children(process.pid):
            if signals_are_ignored(worker):
                for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
                    sent += grid.send(worker, number)
        time.sleep(0.1)
    status, _, err = grid.finish(process)
    assert status == 0, err
    assert sent > 4
    assert [r.ok for r in grid.records(data / "out")] == [True] * 4


def signals_are_ignored(pid: int) -> bool:
    """Whether its Python has come so far."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    (ignored,) = (int(line.split()[1], 16) for line in lines if line.startswith("SigIgn:"))
    return bool(ignored >> (signal.SIGUSR2 - 1) & 1)
