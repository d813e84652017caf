"""The tests that hold methods and towers to recorded figures, on the device."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu.worker import Bench, Line, OutOfTimeError

# The tests that compare with the recorded figures, and the engine's own golden record.
CHOSEN = (
    "official_figures or recorded_figures or test_golden_text "
    # Predictions to the last bit are those of a CPU.
    "or (test_golden_record and not prediction_hash and not revisions)"
)
REPO = Path(__file__).resolve().parents[2]


def run(bench: Bench) -> Iterator[Line]:
    """One line: how many tests passed, and which failed or did not use the device."""
    if not bench.golden.is_dir():
        yield {"status": "failed", "error": f"no recorded figures in {bench.golden}; give --golden"}
        return
    outcomes = Outcomes(bench.device)
    before = dict(os.environ)
    os.environ |= {
        "VIPBENCH_TEST_DEVICE": str(bench.device), "VIPBENCH_TEST_SHARED": str(bench.golden.parent),
        "VIPBENCH_TEST_COLD": "1",
    }  # fmt: skip
    places = ["tests/methods", "tests/backbones/test_golden_text.py",
              "tests/engine/test_golden_record.py"]  # fmt: skip
    if bench.quick:  # each kind once
        places = ["tests/methods/test_golden_prompts.py", "tests/methods/test_vpt.py",
                  "tests/methods/test_tip_adapter.py"]  # fmt: skip
    try:
        with redirect_stdout(sys.stderr):
            pytest.main(
                [*(str(REPO / place) for place in places), "-k", CHOSEN, "-q",
                 f"--rootdir={REPO}", "-c", str(REPO / "pyproject.toml"), "-p", "no:cacheprovider",
                 # It would take the part's own timer.
                 "-p", "no:timeout",
                 # Another machine's libraries may warn of what ours do not.
                 "-o", "addopts=--import-mode=importlib", "-o", "filterwarnings=default"],
                plugins=[outcomes],
            )  # fmt: skip
    finally:
        os.environ.clear()
        os.environ.update(before)
    if outcomes.late:
        yield {"status": "timed out", "error": "the part's limit", **outcomes.counts()}
        return
    yield {
        "status": "ok" if outcomes.passed and not (outcomes.failed or outcomes.idle) else "wrong",
        **outcomes.counts(), "limit": 1e-4,
    }  # fmt: skip


class Outcomes:
    """A plugin of pytest that counts, and that sees whether a test used a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.passed = self.skipped = 0
        self.failed: dict[str, str] = {}
        self.idle: list[str] = []
        # When the part's limit ended a test, which pytest takes for the test's own error.
        self.late = False
        self._before = 0

    def counts(self) -> Line:
        """What a line tells of the tests."""
        return {"passed": self.passed, "skipped": self.skipped, "failed": self.failed,
                "not_on_the_device": self.idle}  # fmt: skip

    def pytest_runtest_makereport(self, call: Any) -> None:
        self.late |= call.excinfo is not None and isinstance(call.excinfo.value, OutOfTimeError)

    def pytest_exception_interact(self, call: Any) -> None:
        if isinstance(call.excinfo.value, OutOfTimeError):
            self.late = True
            pytest.exit("the part's limit")

    def _allocations(self) -> int:
        if self.device.type != "cuda":
            return 0
        return int(torch.cuda.memory_stats(self.device).get("allocation.all.allocated", 0))

    def pytest_runtest_setup(self, item: Any) -> None:
        self._before = self._allocations()

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = report.nodeid.rpartition("/")[2]
        if self.late:
            return
        if report.failed:
            self.failed[name] = str(report.longrepr)[-300:]
        elif report.skipped:
            self.skipped += 1
        elif report.when == "call":
            self.passed += 1
            if self.device.type == "cuda" and self._allocations() == self._before:
                self.idle.append(name)
