"""`vipbench.load_results`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vipbench
from tests.results.samples import filled, scored
from vipbench.results.records.csv import RECORD_COLUMNS
from vipbench.results.store.lock import StoreError


def test_one_row_a_record(tmp_path: Path) -> None:
    filled(tmp_path)
    found = vipbench.load_results(tmp_path)
    assert list(found.columns) == RECORD_COLUMNS
    assert len(found) == 4
    ok = found[found.status == "ok"]
    expected = [scored(seed)[0].metrics["accuracy"] for seed in (1, 2, 3)]
    assert ok.accuracy.tolist() == expected
    assert ok.groupby("method").accuracy.mean()["vip"] == pytest.approx(sum(expected) / 3)
    assert ok.n.tolist() == [10, 10, 10]
    assert ok.sensitivity.iloc[0].keys() == {"nevus", "melanoma", "keratosis"}
    assert ok.hparams.iloc[0]["lr"] == 0.002
    failed = found[found.status == "error"].iloc[0]
    assert failed.error_type == "ValueError"
    assert failed.isna().accuracy
    assert ok.created.dt.year.tolist() == [2026] * 3


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"results\.sqlite"):
        vipbench.load_results(tmp_path / "nowhere")


def test_it_imports_no_torch(tmp_path: Path, repo: Path) -> None:
    filled(tmp_path)
    code = (
        f"import sys, vipbench; assert 'pandas' not in sys.modules; "
        f"print(len(vipbench.load_results({str(tmp_path)!r})), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repo, capture_output=True, text=True, check=False
    )
    assert done.stdout == "4 False\n", done.stderr
