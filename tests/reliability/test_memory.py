"""Out of memory, on the host and on the device: injected into cells beside others.

The cells of a group that do not fit together are done in halves, and one that does not fit alone is
done once more with half the memory that a pass may keep. Records tell; numbers are the same.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability import grid
from vipbench.results import Record

PLUGIN = '''
"""A method that runs out of memory when it is told to."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

import vipbench
from vipbench import api

ERRORS = {"host": MemoryError, "device": torch.OutOfMemoryError}


class Greedy(api.Method):
    """Class means."""

    name = "greedy"
    kind = "TF"
    needs = frozenset()

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """error: which. row: tells rows apart. turns: at which of the calls it is raised."""

        error: str = "host"
        row: str = ""
        turns: str = ""

    def prepare(self, support):
        rows = [support.plain[support.labels == c].mean(0) for c in range(support.n_classes)]
        self.means = torch.stack(rows)
        log = Path(os.environ["GREEDY"]) / f"{self.hparams.error}-{self.hparams.row}"
        with log.open("a") as file:
            file.write("x")
        if str(log.stat().st_size) in self.hparams.turns.split("-"):
            raise ERRORS[self.hparams.error]("injected")

    def forward(self, x):
        return x @ self.means.T


@vipbench.hookimpl
def register_methods(register):
    register(Greedy)
'''


@pytest.mark.parametrize(
    "errors", [["device"], pytest.param(["host"], marks=pytest.mark.reliability)]
)
def test_injected(tmp_path: Path, errors: list[str]) -> None:
    data = grid.write_data(tmp_path)
    (data / "plugins" / "greedy.py").write_text(PLUGIN)
    rows = ["steady[seconds=0]"]
    for error in errors:
        # In the order of the calls: a cell of the stack of four, of two, alone, alone once more.
        for row, turns in (
            ("good", "0"),
            ("halved", "2"),
            ("alone", "1-2-3"),
            ("never", "1-2-3-4"),
        ):
            rows.append(f"greedy[error={error},row={row},turns='{turns}']")
    env = {"GREEDY": str(data)}
    status, printed, err = grid.finish(
        grid.start(data, data / "out", ",".join(rows), seeds="1-4", env=env)
    )
    assert status == 1, err
    found: dict[str, dict[int, Record]] = {}
    for record in grid.records(data / "out"):
        found.setdefault(record.cell.method, {})[record.cell.seed] = record
    # The neighbours are as if nothing had been.
    assert all(record.ok for record in found["steady[seconds=0]"].values())
    bits = grid.bits(data / "out")
    for error in errors:
        good, halved, alone, never = (
            next(r for label, r in found.items() if f"error={error},row={row}" in label)
            for row in ("good", "halved", "alone", "never")
        )
        for seed, record in good.items():
            assert record.ok
            assert "out_of_memory" not in record.provenance
            # The same numbers, whatever it took to get them; nothing of it is in a table.
            for other in (halved[seed], alone[seed]):
                assert other.ok, other.error
                assert bits[other.key] == bits[record.key]
                assert not other.notes
            assert "4 cells at once" in halved[seed].provenance["out_of_memory"]
        assert "half the memory budget" in alone[1].provenance["out_of_memory"]
        # One retry, no more.
        failed = never[1].error
        assert failed is not None
        assert failed.type == ("MemoryError" if error == "host" else "OutOfMemoryError")
        assert "'greedy' (greedy.py): injected" in failed.message
        assert [never[seed].ok for seed in (2, 3, 4)] == [True] * 3
        assert f"note: 'greedy[error={error},row=halved" in printed
