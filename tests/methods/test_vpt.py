"""VPT against the official program's figures, and its shallow form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.backbones.clips import random_backbone
from tests.golden_util import load_golden
from tests.methods.golden_images import hold_to_figures
from tests.methods.image_tasks import fit, make, scores
from vipbench.engine.planning.hparams import make_hparams
from vipbench.errors import UsageError
from vipbench.methods.vpt import VPT


def test_official_figures(shared: Path) -> None:
    file = shared / "golden" / "vptdeep_a.npz"
    hyper = load_golden(file)["meta"]["hyper"]
    depth = hyper["prompt_depth_vision"]
    names: dict[tuple[str, Any], str] = {("vision", 0): "image_encoder.VPT"}
    for i in range(1, depth):
        names["vision", i] = f"image_encoder.transformer.resblocks.{i}.VPT_shallow"
    settings = {
        "n_ctx": hyper["n_ctx_vision"], "depth": depth, "lr": hyper["base_lr"],
        "epochs": hyper["epochs"], "batch_size": hyper["batch_size"],
    }  # fmt: skip
    hold_to_figures(file, VPT, settings, names)


@pytest.mark.parametrize(("depth", "layers"), [("deep", 2), ("shallow", 1), (1, 1), (9, 2)])
def test_depth_counts_the_layers_with_rows_of_their_own(depth: Any, layers: int) -> None:
    method = make(VPT, random_backbone(), depth=depth, n_ctx=5)
    assert method.vision.shape == (layers, 5, 48)
    losses = fit(method, epochs=4, lr=0.05, batch_size=None)
    assert losses[-1] < losses[0]
    # Rows of the last layer count only where that layer has its own.
    before, _ = scores(method)
    with torch.no_grad():
        method.vision[-1] += torch.linspace(-2, 2, 48)
    assert not torch.allclose(before, scores(method)[0], atol=1e-3)


def test_the_template_reaches_the_texts() -> None:
    backbone = random_backbone()
    default, dataset = (make(VPT, backbone, **h) for h in ({}, {"template": ""}))
    first = make(VPT, backbone, template="a picture of a {}.")
    assert torch.equal(dataset.classes, first.classes)
    assert not torch.allclose(default.classes, first.classes)


@pytest.mark.parametrize("wrong", [{"n_ctx": 0}, {"depth": 0}])
def test_settings_below_one_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="is 0; "):
        make_hparams(VPT, wrong)
