"""Who decides how fp32 tensors are multiplied, and the recorded precision of image features."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import Cli
from tests.reliability import grid
from vipbench.engine.precision import feature_precision, require, use_exact_products
from vipbench.engine.workers.process import PRODUCT_VARIABLES
from vipbench.errors import UsageError
from vipbench.results import Store

BACKENDS: Any = torch.backends
SWITCHES = (
    BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv,
)  # fmt: skip

# The first sets what it can where it is imported alone, the second also where it is called.
PLUGIN = """
import torch
from vipbench import api
from vipbench.methods.ncm import NCM

def loosen():
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    torch.set_float32_matmul_precision("medium")

loosen()

class Quiet(NCM):
    name = "quiet"

class Loose(NCM):
    name = "loose"
    def forward(self, x):
        loosen()
        return super().forward(x)
"""


def older_switches() -> list[object]:
    """What libraries still read; PyTorch raises where it disagrees with SWITCHES."""
    return [BACKENDS.cuda.matmul.allow_tf32, BACKENDS.cudnn.allow_tf32,
            torch.get_float32_matmul_precision()]  # fmt: skip


def test_a_precision_holds_for_its_block() -> None:
    cpu = torch.device("cpu")
    torch.set_float32_matmul_precision("medium")
    use_exact_products()
    assert {switch.fp32_precision for switch in SWITCHES} == {"ieee"}
    with feature_precision("tf32", cpu):
        assert [switch.fp32_precision for switch in SWITCHES] == ["tf32", "tf32", "ieee", "ieee"]
        assert older_switches() == [True, True, "high"]
    assert {switch.fp32_precision for switch in SWITCHES} == {"ieee"}
    assert older_switches() == [False, False, "highest"]
    with torch.autocast("cpu", torch.bfloat16), feature_precision("fp32", cpu):
        assert not torch.is_autocast_enabled("cpu")
    with feature_precision("bf16", cpu):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with pytest.raises(UsageError, match=r"tf32.*CUDA"):
        require("tf32", cpu)


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "loose.py").write_text(PLUGIN)
    return folder


def test_features_in_bf16_are_other_features_and_say_so(
    cli: Cli, tmp_path: Path, loose: Path
) -> None:
    data = grid.write_data(tmp_path) / "toy.npz"
    run = ["run", "--methods", "ncm,quiet,loose", "--plugins-dir", str(loose), "--shots", "1",
           "--datasets", f"npz:{data}", "--backbones", "tiny-clip", "--seeds", "1",
           "--device", "cpu", "--out"]  # fmt: skip
    switched = dict.fromkeys(PRODUCT_VARIABLES, "BF16")
    shown = {}
    for precision in ("fp32", "bf16"):
        env = switched if precision == "fp32" else {}
        done = cli(*run, str(tmp_path / precision), "--feature-precision", precision, env=env)
        assert done.returncode == 1, done.stderr
        shown[precision] = done.stdout + done.stderr
    assert "features bf16" in shown["bf16"]
    assert "features bf16" not in shown["fp32"]
    scores = {}
    for precision in shown:
        with Store(tmp_path / precision, readonly=True) as store:
            for record in store.records():
                parts = record.provenance["key_parts"]
                stated = getattr(record.protocol, "feature_precision", None)
                kept = stated, parts.get("feature_precision")
                assert kept == ((None, None) if precision == "fp32" else ("bf16", "bf16"))
                if record.cell.method == "loose":
                    assert record.error is not None
                    assert re.search("'loose'.*precision", record.error.message)
                    continue
                found = store.predictions(record.key)
                assert found is not None
                scores[record.cell.method, precision] = record.key, found.scores
    for precision in shown:
        assert np.array_equal(scores["quiet", precision][1], scores["ncm", precision][1])
    key, exact = scores["ncm", "fp32"]
    other_key, rounded = scores["ncm", "bf16"]
    assert key != other_key
    assert 0 < np.abs(exact - rounded).max() < 0.05 * np.abs(exact).max()
