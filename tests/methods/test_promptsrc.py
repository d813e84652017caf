"""PromptSRC against the official program's figures: teacher, losses, averaging."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.backbones.clips import random_backbone
from tests.golden_util import load_golden
from tests.methods.golden_images import (
    close,
    golden_task,
    hold_to_figures,
    text_and_vision_prompts,
)
from tests.methods.image_tasks import fit, make, toy_task
from vipbench.methods.promptsrc import PromptSRC, imagenet_templates


def test_official_figures(shared: Path) -> None:
    file = shared / "golden" / "promptsrc_a.npz"
    hyper = load_golden(file)["meta"]["hyper"]
    settings = {
        "n_ctx_text": hyper["n_ctx_text"], "n_ctx_vision": hyper["n_ctx_vision"],
        "depth_text": hyper["depth_text"], "depth_vision": hyper["depth_vision"],
        "context_init": hyper["ctx_init"], "lr": hyper["base_lr"], "epochs": hyper["epochs"],
        "batch_size": hyper["batch_size"], "text_weight": hyper["text_loss_weight"],
        "image_weight": hyper["image_loss_weight"], "average_mean": hyper["gpa_mean"],
        "average_std": hyper["gpa_std"],
    }  # fmt: skip
    names = text_and_vision_prompts(hyper["depth_text"], hyper["depth_vision"])
    method, cell, golden = hold_to_figures(file, PromptSRC, settings, names)
    np.testing.assert_allclose(cell.recipe.epoch_weights, golden["gauss"], atol=1e-9)
    close(method.get_buffer("teacher").cpu().numpy(), normalised(golden["fixed_embeddings"]))


def normalised(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_the_teachers_templates_are_the_official_ones(shared: Path) -> None:
    golden = load_golden(shared / "golden" / "promptsrc_a.npz")
    task = golden_task(golden)
    ours = {
        tuple(int(i) for i in row if i)
        for text in imagenet_templates()
        for row in task.embed([text.replace("{}", task.names[0])]).tokens
    }
    theirs = {tuple(int(i) for i in row[0] if i) for row in golden["teacher_token_ids"]}
    assert ours == theirs
    assert len(imagenet_templates()) == 60


@pytest.mark.parametrize(
    ("setting", "epochs", "peak"), [("few-shot", 50, 30), ("base-to-new", 20, 15)]
)
def test_settings_of_the_paper(setting: str, epochs: int, peak: int) -> None:
    info = toy_task(random_backbone()).info
    recipe = PromptSRC.HParams(setting=setting).for_cell(info).recipe(info)
    assert recipe.epochs == epochs
    weights = recipe.epoch_weights
    assert sum(weights) == pytest.approx(1)
    assert weights.index(max(weights)) + 1 == peak


@pytest.mark.parametrize("epochs", [1, 3])
def test_few_epochs_far_from_the_mean_still_have_weights(epochs: int) -> None:
    hparams = PromptSRC.HParams(epochs=epochs, average_mean=90.0, average_std=1.0)
    weights = hparams.recipe(toy_task(random_backbone()).info).epoch_weights
    assert sum(weights) == pytest.approx(1)
    assert weights[-1] > 0.99


def test_the_quick_profile_keeps_the_shape_of_the_weights() -> None:
    info = toy_task(random_backbone()).info
    quick = PromptSRC.HParams().for_cell(info).quick(info)
    assert (quick.epochs, quick.average_mean, quick.average_std) == (10, 6.0, 6.0)
    short = PromptSRC.HParams(epochs=3).for_cell(info)
    assert short.quick(info) == short


def test_each_regulariser_counts() -> None:
    backbone = random_backbone()
    losses = {
        name: fit(make(PromptSRC, backbone, **{name: 0.0} if name else {}), epochs=1)[0]
        for name in ("", "text_weight", "image_weight", "logits_weight")
    }
    assert all(losses[name] < losses[""] - 1e-4 for name in losses if name)


def test_the_datasets_templates_can_teach() -> None:
    backbone = random_backbone()
    method = make(PromptSRC, backbone, templates="dataset")
    texts = [[t.replace("{}", n) for n in method.task.names] for t in method.task.templates]
    features = backbone.encode_text(backbone.embed(texts)).mean(0)
    expected = torch.nn.functional.normalize(features, dim=-1)
    torch.testing.assert_close(method.teacher, expected)
