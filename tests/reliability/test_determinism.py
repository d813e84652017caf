"""The same cells in shuffled order, by one to four workers, stacked and looped, with and without
cache: identical prediction hashes.

Where the same cells train together, every bit of the scores is the same, too. In other company a
product of matrices with few rows may take another path through the processor, which rounds
otherwise: 7e-7 was seen, relative to the largest score. docs/reliability.md tells the whole.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tests import warm
from tests.reliability import grid

ROWS = [
    *("linear-probe", "coop[epochs=3]", "zs-lp[epochs=20]", "vip[epochs=2]"),
    *("cocoop[epochs=1]", "tip-adapter-f[epochs=2]", "steady[seconds=0]"),
]
# What stacking may change, relative to the largest score.
ROUNDING = 1e-5


def repeat(data: Path, rows: list[str], times: int, seeds: int) -> None:
    rng = random.Random(1)
    whole = ",".join(map(str, range(1, seeds + 1)))
    first = data / "out-0"
    for turn in range(times):
        order, out = rows[:], data / f"out-{turn}"
        rng.shuffle(order)
        # Every second run has a cache of its own, which is empty; of the others the first fills it.
        # A new interpreter has another hash seed, and so another order of sets.
        env = {warm.COLD: "1"} if turn % 2 or times > 3 else {}
        if turn % 2:
            env["VIPBENCH_CACHE"] = str(data / f"features-{turn}")
        # Every third run trains each cell alone, a seed at a time and in any order.
        looped = turn % 3 == 2
        alone = [str(seed) for seed in range(1, seeds + 1)]
        rng.shuffle(alone)
        workers = str(turn % 4 + 1)
        for some in alone if looped else [whole]:
            more = ("--workers", workers, "--symptoms", str(data / "symptoms.json"))
            process = grid.start(data, out, ",".join(order), *more, seeds=some, env=env)
            status, _, err = grid.finish(process, timeout=600)
            assert status == 0, err
        found, expected = grid.predictions(out), grid.predictions(first)
        assert len(found) == len(expected) > seeds
        for key in expected:
            assert found[key].prediction_hash == expected[key].prediction_hash, turn
            scores = expected[key].scores
            bound = ROUNDING * np.abs(scores).max()
            np.testing.assert_allclose(found[key].scores, scores, rtol=0, atol=bound)
        if looped:
            one, other = grid.bits(out), grid.bits(first)
            same = sum(one[key] == other[key] for key in one)
            print(f"looped: {same} of {len(one)} cells are the same in every bit")
        else:
            assert grid.bits(out) == grid.bits(first), (turn, workers)


def with_symptoms(data: Path) -> Path:
    (data / "symptoms.json").write_text(
        '{"dark": ["little light", "deep shadow"], "bright": ["much light", "white patches"]}'
    )
    return data


def test_three_runs(tmp_path: Path) -> None:
    repeat(with_symptoms(grid.write_data(tmp_path)), ROWS[:2], 3, 2)


@pytest.mark.reliability
@pytest.mark.timeout(1800)
def test_ten_runs(tmp_path: Path) -> None:
    repeat(with_symptoms(grid.write_data(tmp_path)), ROWS, 10, 3)
