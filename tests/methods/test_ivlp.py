"""Independent vision-language prompts against the official program's figures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.backbones.clips import random_backbone
from tests.golden_util import load_golden
from tests.methods.golden_images import hold_to_figures, text_and_vision_prompts
from tests.methods.image_tasks import fit, make, scores, toy_images
from vipbench.engine.planning.hparams import make_hparams
from vipbench.errors import UsageError
from vipbench.methods.ivlp import IVLP


def test_official_figures(shared: Path) -> None:
    file = shared / "golden" / "ivlp_a.npz"
    hyper = load_golden(file)["meta"]["hyper"]
    settings = {
        "n_ctx_text": hyper["n_ctx_text"], "n_ctx_vision": hyper["n_ctx_vision"],
        "depth_text": hyper["depth_text"], "depth_vision": hyper["depth_vision"],
        "context_init": hyper["ctx_init"], "lr": hyper["base_lr"], "epochs": hyper["epochs"],
        "batch_size": hyper["batch_size"],
    }  # fmt: skip
    names = text_and_vision_prompts(hyper["depth_text"], hyper["depth_vision"])
    hold_to_figures(file, IVLP, settings, names)


def test_depths_and_rows_of_the_towers_are_apart() -> None:
    method = make(
        IVLP, random_backbone(), n_ctx_text=3, n_ctx_vision=6, depth_text=2, depth_vision=1
    )
    assert method.context.shape == (3, 32)
    assert method.deep.shape == (1, 3, 32)
    assert method.vision.shape == (1, 6, 48)
    losses = fit(method, epochs=4, lr=0.02, batch_size=None)
    assert losses[-1] < losses[0]


def test_without_vision_prompts_image_features_are_the_frozen_ones() -> None:
    backbone = random_backbone()
    method = make(IVLP, backbone, depth_vision=0)
    fit(method, epochs=3, lr=0.05)
    found, _ = scores(method, per_class=2)
    x, _ = toy_images(2, 32, seed=9)
    with torch.no_grad():
        tap = method.tap()
        classes = backbone.encode_text(method.prompts, method.context, tap)
        expected = method.task.cosine_logits(backbone.encode_image(x), classes)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_settings_are_checked() -> None:
    with pytest.raises(UsageError, match="depth_text is 0"):
        make_hparams(IVLP, {"depth_text": 0})
    with pytest.raises(UsageError, match="depth_vision is -1"):
        make_hparams(IVLP, {"depth_vision": -1})
