"""CLIP-LoRA against the official program's figures; where the updates sit; dropout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.backbones.clips import random_backbone
from tests.golden_util import load_golden
from tests.methods.golden_images import hold_to_figures
from tests.methods.image_tasks import fit, make, scores, toy_images, toy_task
from vipbench.api import CellInfo
from vipbench.engine.planning.hparams import make_hparams
from vipbench.errors import UsageError
from vipbench.methods.cliplora import CLIPLoRA, dropout, random_bits


def test_official_figures(shared: Path) -> None:
    file = shared / "golden" / "cliplora_a.npz"
    golden = load_golden(file)
    hyper = golden["meta"]["hyper"]
    params = "".join(hyper["params"])
    names: dict[tuple[str, Any], str] = {}
    for tower, prefix in (("text", ""), ("vision", "visual.")):
        layers = hyper["arch"]["tl" if tower == "text" else "vl"]
        for layer in range(layers):
            for which, letter in enumerate(params):
                where = f"{prefix}transformer.resblocks.{layer}.attn.{letter}_proj.w_lora_"
                names[f"{tower}_down", (layer, which)] = f"{where}A"
                names[f"{tower}_up", (layer, which)] = f"{where}B"
    settings = {
        "rank": hyper["r"], "alpha": hyper["alpha"], "params": params,
        "encoder": hyper["encoder"], "position": hyper["position"],
        "iterations_per_shot": hyper["n_iters"], "lr": hyper["lr"],
        "batch_size": hyper["batch_size"], "dropout": 0.0, "compat": "official",
    }  # fmt: skip
    hold_to_figures(file, CLIPLoRA, settings, names, shots=hyper["shots"])


def test_the_default_scores_with_the_checkpoints_temperature() -> None:
    backbone = random_backbone()
    paper, official = (make(CLIPLoRA, backbone, compat=c) for c in ("paper", "official"))
    ratio = scores(official)[0] / scores(paper)[0]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 100 / backbone.logit_scale))


def test_fixed_texts_are_the_mean_over_the_datasets_templates() -> None:
    backbone = random_backbone()
    task = toy_task(backbone)  # two templates
    x, _ = toy_images(30, backbone.image_size, seed=9)
    with torch.no_grad():
        images = backbone.encode_image(x)
    mean, first = (
        task.cosine_logits(images, task.class_features(templates))
        for templates in (None, task.templates[:1])
    )
    assert (mean - first).abs().max() > 1e-3
    for template, expected in (("", mean), (task.templates[0], first)):
        method = make(CLIPLoRA, backbone, encoder="vision", template=template, dropout=0.0)
        torch.testing.assert_close(scores(method)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("position", "text", "vision"),
    [
        ("all", list(range(12)), list(range(24))),
        ("top2", [10, 11], [22, 23]),
        ("bottom", [0, 1, 2, 3], list(range(8))),
        ("mid", [4, 5, 6, 7], list(range(8, 16))),
        ("up", [8, 9, 10, 11], list(range(16, 24))),
        ("half-up", list(range(6, 12)), list(range(12, 24))),
        ("half-bottom", list(range(6)), list(range(12))),
    ],
)
def test_positions_are_parts_of_the_depth(
    position: str, text: list[int], vision: list[int]
) -> None:
    tower = random_backbone(text_cfg={"layers": 12}, vision_cfg={"layers": 24})
    method = make(CLIPLoRA, tower, position=position)
    assert method.blocks == {"text": text, "vision": vision}


@pytest.mark.parametrize("params", ["qkv", "qkvo", "v"])
@pytest.mark.parametrize("encoder", ["both", "text", "vision"])
def test_updates_act_where_they_are_asked_for(encoder: str, params: str) -> None:
    backbone = random_backbone()
    method = make(CLIPLoRA, backbone, encoder=encoder, params=params, dropout=0.0)
    losses = fit(method, iterations=3, lr=0.02, batch_size=None)
    assert losses[-1] < losses[0]
    moved = {n for n, p in method.named_parameters() if n.endswith("_up") and p.any()}
    assert moved == {f"{tower}_up" for tower in ("text", "vision") if encoder in ("both", tower)}
    if encoder == "both":
        for tower in ("text", "vision"):
            up = method.get_parameter(f"{tower}_up")
            assert up.shape[1] == len(params)
            assert (up != 0).flatten(2).any(-1).all()


def test_learns_the_toy_with_dropout() -> None:
    method = make(CLIPLoRA, random_backbone())
    fit(method, iterations=20, lr=2e-2)
    found, labels = scores(method)
    assert (found.argmax(1) == labels).float().mean() > 0.8
    # Scoring drops nothing.
    torch.testing.assert_close(found, scores(method)[0])
    method.key = torch.ones(1)
    torch.testing.assert_close(found, scores(method)[0])


def test_dropout_drops_its_share_and_repeats() -> None:
    x = torch.ones(64, 50, 32)
    keys = torch.randn(3, 1, generator=torch.Generator().manual_seed(0))
    bits = torch.vmap(lambda key: random_bits(x, key, 7))(keys)
    assert torch.equal(bits[1], random_bits(x, keys[1], 7))
    others = [random_bits(x, keys[1], 8), bits[0], bits[2]]
    masks = [dropout(x, 0.25, b, f) for b in (bits[1], *others) for f in range(3)]
    assert masks[0].unique().tolist() == [0.0, pytest.approx(4 / 3)]
    for mask in masks:
        assert (mask == 0).float().mean().item() == pytest.approx(0.25, abs=0.006)
        # Neither rows nor columns share their fate.
        assert (mask == 0).float().mean((0, 1)).std() < 0.02
        assert (mask == 0).float().mean((1, 2)).std() < 0.03
    # Keys, places and the three projections are independent of each other.
    for mask in masks[1:]:
        agree = ((masks[0] == 0) & (mask == 0)).float().mean().item()
        assert agree == pytest.approx(0.25**2, abs=0.006)


def test_iterations_follow_the_shots() -> None:
    def iterations(shots: int | None, **hparams: Any) -> Any:
        info = CellInfo(shots, 1000, 3, "toy", 8, 8, "toy")
        return CLIPLoRA.HParams(**hparams).recipe(info).iterations

    assert [iterations(k) for k in (1, 4, 16, None)] == [500, 2000, 8000, 8000]
    assert iterations(16, max_iterations=300) == 300
    info = toy_task(random_backbone()).info
    assert CLIPLoRA.HParams().quick(info).recipe(info).iterations == 100


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"params": "qx"}, "params .*'qx'"),
        ({"dropout": 1.0}, r"dropout .*1\.0.* 1"),
        ({"rank": 0}, "rank .*0"),
    ],
)
def test_settings_are_checked(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_hparams(CLIPLoRA, wrong)
