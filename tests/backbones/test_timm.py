"""timm: backbones equal timm's own forward; local weights, refusals, pairs that cannot be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from torch import Tensor

from tests.backbones.clips import pictures
from tests.backbones.hub_models import randomise
from tests.conftest import Cli
from vipbench.api import Backbone, ImageBackbone, NoTap, UnsupportedError, Views
from vipbench.engine.features.views import training_view
from vipbench.errors import UsageError
from vipbench.plugins.registry import load_registry

# Small ones; the second is a plain vision transformer, the third a hybrid without such blocks.
NAMES = ("test_resnet", "test_vit", "test_convnext")


def load(argument: str) -> Any:
    return load_registry().backbone(f"timm:{argument}")[0]


def save(name: str, path: Path) -> Any:
    """A checkpoint with timm's classifier of 1000 classes; the model."""
    model = randomise(timm.create_model(name, pretrained=False))
    safetensors.torch.save_file(model.state_dict(), path)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_features_are_timms(name: str, tmp_path: Path) -> None:
    model = save(name, tmp_path / "weights.safetensors")
    backbone = load(f"{name}@{tmp_path / 'weights.safetensors'}")
    assert isinstance(backbone, ImageBackbone)
    assert not isinstance(backbone, Backbone)
    pixels = torch.randn(3, 3, backbone.image_size, backbone.image_size)
    with torch.no_grad():
        theirs = model.forward_head(model.forward_features(pixels), pre_logits=True)
    torch.testing.assert_close(backbone.encode_image(pixels), theirs, atol=1e-5, rtol=1e-5)
    assert backbone.dim == theirs.shape[1]
    assert backbone.name.startswith(f"timm:{name}@")
    assert str(tmp_path) not in backbone.name


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_any_images_equal_timms(name: str, tmp_path: Path) -> None:
    model = save(name, tmp_path / "weights.safetensors")
    backbone = load(f"{name}@{tmp_path / 'weights.safetensors'}")
    data = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**data, is_training=False)
    images = [*pictures(), pictures()[0].resize((backbone.image_size,) * 2)]
    pixels = torch.stack([transform(image) for image in images])
    theirs = model.forward_head(model.forward_features(pixels), pre_logits=True)
    ours = backbone.encode_image(torch.stack([backbone.preprocess(image) for image in images]))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_taps_go_into_vision_transformers_alone(tmp_path: Path) -> None:
    vit, resnet = load("test_vit+random"), load("test_resnet+random")
    pixels = torch.randn(2, 3, vit.image_size, vit.image_size)
    plain = vit.encode_image(pixels)
    torch.testing.assert_close(vit.encode_image(pixels, NoTap()), plain, atol=1e-5, rtol=1e-5)

    class Prompt(NoTap):
        def tokens(self, tower: Any, layer: int, x: Tensor) -> Tensor:
            rows = torch.linspace(-1, 1, x.shape[-1]).expand(len(x), 2, -1)
            return torch.cat([x, rows], 1) if layer == 0 else x

    assert not torch.allclose(vit.encode_image(pixels, Prompt()), plain, atol=1e-3)
    assert (vit.vision_layers, vit.vision_width) == (6, 64)
    assert (resnet.vision_layers, resnet.vision_width) == (0, None)
    side = resnet.image_size
    with pytest.raises(UnsupportedError, match="ResNet"):
        resnet.encode_image(torch.zeros(1, 3, side, side), NoTap())


@pytest.mark.parametrize("name", NAMES)
def test_preprocessing_is_timms(name: str) -> None:
    backbone = load(f"{name}+random")
    model = timm.create_model(name, pretrained=False)
    transform = timm.data.create_transform(
        **timm.data.resolve_model_data_config(model), is_training=False
    )
    rng = np.random.default_rng(0)
    blocks = Image.fromarray(rng.integers(0, 256, (7, 9, 3)).astype(np.uint8))
    side = backbone.image_size
    for size in ((300, 240), (240, 300), (200, 200), (side, side)):
        image = blocks.resize(size)
        torch.testing.assert_close(backbone.preprocess(image), transform(image))
    # A training view is in the tower's size already.
    view = training_view(blocks.resize((90, 80)), side, Views(), (1,))
    assert torch.equal(
        backbone.preprocess(view), transform.transforms[-1](transform.transforms[-2](view))
    )


def test_random_weights_are_the_same_everywhere() -> None:
    first, second = load("test_vit+random"), load("test_vit+random")
    assert first.fingerprint == second.fingerprint
    assert first.name == "timm:test_vit+random"
    state = torch.random.get_rng_state()
    load("test_vit+random")
    assert torch.equal(torch.random.get_rng_state(), state)


def test_trainable_copies(tmp_path: Path) -> None:
    backbone = load("test_resnet+random")
    pixels = torch.randn(2, 3, backbone.image_size, backbone.image_size)
    before = backbone.encode_image(pixels)
    copy = backbone.trainable_copy()
    assert all(p.requires_grad for p in copy.parameters())
    torch.testing.assert_close(copy.eval()(pixels), before)
    fresh = backbone.trainable_copy(pretrained=False).eval()
    assert fresh(pixels).shape == before.shape
    assert not torch.allclose(fresh(pixels), before)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("", "timm:NAME or timm:NAME.TAG"),
        ("resnet5", "'resnet5'.*'resnet50'"),
        ("resnet50.a1_in2k", r"resnet50 'a1_in2k'.*'a1_in1k'"),
        ("test_vit@", "'@'"),
        ("test_vit+random@x.pt", "random .*file"),
        ("test_vit@nowhere.safetensors", "exist"),
        ("resnet50.a1_in1k", r"model\.safetensors .*'timm/resnet50\.a1_in1k'.*"
                             r"`hf download timm/resnet50\.a1_in1k model\.safetensors`.*\+random"),
    ],
)  # fmt: skip
def test_refusals(argument: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=message):
        load(argument)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    model = save("test_vit", path)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    del weights["norm.weight"]
    weights["strange"] = torch.zeros(2)
    weights["cls_token"] = torch.zeros(1, 1, 5)
    safetensors.torch.save_file(weights, path)
    with pytest.raises(
        UsageError,
        match=r"\(norm\.weight\).*\(strange\).*shape",
    ):
        load(f"test_vit@{path}")
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    weights["norm.weight"][0] = torch.inf
    safetensors.torch.save_file(weights, path)
    with pytest.raises(UsageError, match=r"NaN.*\(norm\.weight\)"):
        load(f"test_vit@{path}")


def test_methods_with_texts_are_impossible_and_reported(cli: Cli, tmp_path: Path) -> None:
    done = cli(
        *("run", "--backbones", "timm:test_resnet+random", "--datasets", "synthderm"),
        *("--methods", "coop,vpt,linear-probe", "--shots", "1", "--seeds", "1", "--dry-run"),
        *("--out", tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    output = done.stdout + done.stderr
    assert re.search(r"'coop'.*text.*'timm:test_resnet\+random'", output)
    assert re.search("'vpt'.*text", output)
