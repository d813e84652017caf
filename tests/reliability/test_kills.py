"""kill -9 of drivers and workers at random moments: nothing lost, nothing twice, same table."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.reliability import grid

ROWS = "linear-probe,coop[epochs=3]," + ",".join(f"steady[tag={i}]" for i in range(10))
SEEDS = "1-4"
CELLS = 48
# What a day's run takes of it.
FEW = "linear-probe,steady,steady[tag=1]"
FEW_CELLS = 12


def undisturbed(data: Path, rows: str, cells: int) -> Path:
    out = data / "undisturbed"
    status, _, err = grid.finish(grid.start(data, out, rows, seeds=SEEDS))
    assert status == 0, err
    assert len(grid.records(out)) == cells
    return out


def campaign(
    data: Path, out: Path, rng: random.Random, kills: int, rows: str, cells: int, longest: float
) -> int:
    """Run the grid to its end with at most `kills` kills on the way, each within `longest` seconds;
    returns how many it took."""
    taken, kept = 0, dict[str, str]()
    while True:
        process = grid.start(data, out, rows, seeds=SEEDS)
        seen = set[int]()
        while taken < kills and process.poll() is None:
            # From the first import to the last table; half of the time while cells are run.
            until = time.monotonic() + rng.uniform(0, longest)
            while time.monotonic() < until and process.poll() is None:
                seen |= set(grid.children(process.pid))
                time.sleep(0.02)
            workers = grid.children(process.pid)
            seen |= set(workers)
            victim = workers[0] if workers and rng.random() < 0.5 else process.pid
            if process.poll() is None and grid.kill(victim):
                taken += 1
            if victim == process.pid:
                break
        status, _, err = grid.finish(process)
        assert "mistake in vipbench" not in err, err
        grid.assert_gone(seen)
        found = grid.records(out)
        assert len({r.key for r in found}) == len(found)
        now = {r.key: r.created for r in found if r.ok}
        # What was finished once is neither lost nor done again.
        assert kept.items() <= now.items()
        kept = now
        if status == 0:
            assert len(kept) == cells
            return taken


def disturb(
    data: Path, kills: int, seed: int, rows: str = ROWS, cells: int = CELLS, longest: float = 9
) -> None:
    expected = undisturbed(data, rows, cells)
    rng, taken, turn = random.Random(seed), 0, 0
    while taken < kills:
        turn += 1
        out = data / f"disturbed-{turn}"
        taken += campaign(data, out, rng, kills - taken, rows, cells, longest)
        assert grid.tables(out) == grid.tables(expected)
        assert grid.hashes(out) == grid.hashes(expected)
        print(f"{taken} kills, {turn} runs")


def test_two_kills(tmp_path: Path) -> None:
    disturb(grid.write_data(tmp_path), 2, 1, FEW, FEW_CELLS, longest=5)


@pytest.mark.reliability
@pytest.mark.timeout(3000)
def test_two_hundred_kills(tmp_path: Path) -> None:
    disturb(grid.write_data(tmp_path), 200, seed=2)
