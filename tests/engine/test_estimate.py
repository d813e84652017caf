"""What `--estimate` makes of the times that it measures, by a clock that the test turns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vipbench.cli.commands.run import sum_lines
from vipbench.engine.evaluation import estimate
from vipbench.engine.features.features import ENCODE_BATCH
from vipbench.engine.training.stacking import TrainCell
from vipbench.engine.workers.messages import Estimate
from vipbench.engine.workers.session import Session
from vipbench.runspec.run import RunSpec
from vipbench.text import duration

STEP = 2.0
TEST, SUPPORT = 300, 6  # images of synthderm, and of its six classes at one shot


class Clock:
    """A second goes by whenever it is read, and STEP seconds in each training step."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1
        return self.now

    def train(self, cells: Sequence[TrainCell]) -> None:
        assert len({cell.recipe.iterations for cell in cells}) == 1
        self.now += STEP * (cells[0].recipe.iterations or 0)


def test_seconds_of_a_group_are_those_of_its_parts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VIPBENCH_CACHE", str(tmp_path))
    clock = Clock()
    monkeypatch.setattr(estimate, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    monkeypatch.setattr(estimate, "train", clock.train)
    events: list[Any] = []
    session = Session(events.append)
    spec = RunSpec.parse(
        {
            "methods": ["zero-shot", "linear-probe", "coop[epochs=10]", "vpt[epochs=3]"],
            "datasets": ["synthderm"], "backbones": ["tiny-clip"], "shots": [1],
            "seeds": [1, 2], "views": 3, "device": "cpu",
        }
    )  # fmt: skip
    session.plan(spec)
    rows: dict[str, list[str]] = {}
    for key, cell in session.cells.items():
        rows.setdefault(cell.row.method.name, []).append(key)
    assert {name: len(keys) for name, keys in rows.items()} == {
        "zero-shot": 1, "linear-probe": 2, "coop": 2, "vpt": 2
    }  # fmt: skip
    found = {}
    for name, keys in rows.items():
        session.estimate(keys)
        found[name] = events[-1].estimate.work_seconds
    opened = 1 / min(ENCODE_BATCH, TEST)
    scored = TEST / estimate.IMAGES
    assert found == {
        "zero-shot": pytest.approx(1 + scored),
        # Built, trained by its own loop and scored, each of two cells.
        "linear-probe": pytest.approx(2 * (1 + 1 + scored)),
        # Both cells train as one.
        "coop": pytest.approx(2 * (1 + scored) + 10 * STEP),
        # It opens its images for each of three views, and every test image; two batches an epoch.
        "vpt": pytest.approx(2 * (1 + scored + TEST * opened + SUPPORT * 3 * opened) + 6 * STEP),
    }


def test_the_views_that_fewer_would_save_are_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VIPBENCH_CACHE", str(tmp_path))
    events: list[Any] = []
    session = Session(events.append)
    values = {
        "methods": ["coop[epochs=20]"], "datasets": ["synthderm"], "backbones": ["tiny-clip"],
        "shots": [1, 2], "seeds": [1], "device": "cpu",
    }  # fmt: skip
    spec = RunSpec.parse(values)
    session.plan(spec)
    session.estimate([*session.cells], seconds=0.0)
    found: Estimate = events[-1].estimate
    # The smallest cell is timed, whatever the time.
    assert (found.cells, found.measured) == (2, 1)
    assert found.work_seconds is not None
    # Of 20 views of 12 support images 8 are kept; the cells share the views of 6 images.
    assert found.saved_seconds == pytest.approx(found.view_seconds * 12 / 20)
    assert 0 < found.view_seconds < found.encode_seconds
    lever = next(line for line in sum_lines([found], spec) if "--views 8" in line)
    total = found.encode_seconds + found.work_seconds
    assert duration(total - found.saved_seconds) in lever
