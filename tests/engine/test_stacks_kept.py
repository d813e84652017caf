"""What was trained together is kept together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vipbench.engine.workers import driver
from vipbench.results.store.store import Store
from vipbench.runspec.run import RunSpec


def test_a_stack_costs_a_few_transactions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    whole = Store.add_many

    def counted(self: Store, pairs: Any, parameters: Any = None) -> None:
        pairs = list(pairs)
        whole(self, pairs, parameters)
        kept.append(len(pairs))

    monkeypatch.setattr(Store, "add_many", counted)
    monkeypatch.setenv("VIPBENCH_CACHE", str(tmp_path / "cache"))
    spec = {"methods": "ncm", "shots": "1", "seeds": "1-20", "out": str(tmp_path / "out")}
    outcome = driver.run(RunSpec.parse(spec))
    assert (outcome.done, sum(kept)) == (20, 20)
    # A transaction of SQLite takes about four syncs.
    assert len(kept) <= 3
    with Store(tmp_path / "out", readonly=True) as store:
        assert len(store.status()) == 20
