"""MaPLe against the official program's figures, and how words become context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.backbones.clips import random_backbone
from tests.golden_util import load_golden
from tests.methods.golden_images import hold_to_figures
from tests.methods.image_tasks import fit, make, scores
from vipbench.api import UnsupportedError
from vipbench.methods.maple import MaPLe


def test_official_figures(shared: Path) -> None:
    file = shared / "golden" / "maple_a.npz"
    hyper = load_golden(file)["meta"]["hyper"]
    names: dict[tuple[str, Any], str] = {("context", ...): "prompt_learner.ctx"}
    couplings = "prompt_learner.compound_prompt_projections"
    for part in ("weight", "bias"):
        names[f"project.{part}", ...] = f"prompt_learner.proj.{part}"
        for i in range(hyper["prompt_depth"] - 1):
            names[f"project_deep.{i}.{part}", ...] = f"{couplings}.{i}.{part}"
    for i in range(hyper["prompt_depth"] - 1):
        names["deep", i] = f"prompt_learner.compound_prompts_text.{i}"
    settings = {
        "n_ctx": hyper["n_ctx"], "depth": hyper["prompt_depth"], "lr": hyper["base_lr"],
        "context_init": hyper["ctx_init"], "epochs": hyper["epochs"],
        "batch_size": hyper["batch_size"],
    }  # fmt: skip
    hold_to_figures(file, MaPLe, settings, names)


@pytest.mark.parametrize(
    ("n_ctx", "words", "start", "text"),
    [
        (2, "a photo of a", "a photo", "of a red spot."),
        (4, "a photo of a", "a photo of a", "red spot."),
        (1, "dermoscopic picture", None, None),
        (2, "dermoscopy picture", None, None),
        (5, "a photo of a", "", "red spot."),
        (3, "", "", "red spot."),
    ],
)
def test_words_start_the_context_and_the_rest_stays(
    n_ctx: int, words: str, start: str | None, text: str | None
) -> None:
    backbone = random_backbone()
    if start is None:
        # These words are two tokens and more each.
        with pytest.raises(UnsupportedError, match=r"n_ctx"):
            make(MaPLe, backbone, n_ctx=n_ctx, context_init=words)
        return
    method = make(MaPLe, backbone, n_ctx=n_ctx, context_init=words)
    if start:
        assert torch.equal(method.context, backbone.embed_words(start))
    else:
        assert method.context.std().item() == pytest.approx(0.02, rel=0.5)
    assert text is not None
    expected = backbone.embed([("", text)])
    length = int(expected.lengths[0])
    assert method.prompts.tokens[0, :length].tolist() == expected.tokens[0].tolist()


def test_couplings_start_alike_and_depth_ends_with_the_smaller_tower() -> None:
    method = make(MaPLe, random_backbone(vision_cfg={"layers": 4}), depth=9)
    assert method.deep.shape == (2, 2, 32)  # the text tower has three blocks
    first, second = method.project_deep
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight, method.project.weight)
    losses = fit(method, epochs=4, lr=0.02, batch_size=None)
    assert losses[-1] < losses[0]
    assert not torch.equal(first.weight, second.weight)


def test_learns_the_toy_and_leaves_the_towers_alone() -> None:
    method = make(MaPLe, random_backbone(), n_ctx=3)
    before = {k: v.clone() for k, v in method.task.backbone._model.state_dict().items()}
    fit(method, epochs=20, lr=0.1, batch_size=6)
    found, labels = scores(method)
    assert (found.argmax(1) == labels).float().mean() > 0.6
    for name, value in method.task.backbone._model.state_dict().items():
        assert torch.equal(value, before[name])
