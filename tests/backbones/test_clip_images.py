"""The image tower: preprocessing, features, taps, copies; and what identifies a backbone."""

from __future__ import annotations

from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.func import grad, vmap

from tests.backbones.clips import random_backbone, random_clip, tiny_config
from vipbench.api import NoTap, UnsupportedError
from vipbench.backbones.towers import frozen_vit as _forward
from vipbench.backbones.towers.clip import ClipBackbone, clip_wordpieces

BACKBONE = random_backbone()
PIXELS = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
RESNET = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64, "patch_size": None}


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@given(st.integers(1, 90), st.integers(1, 90))
def test_preprocessing_is_open_clips_own(width: int, height: int) -> None:
    image = noise(width, height)
    expected = open_clip.image_transform(32, is_train=False)(image)
    assert torch.equal(BACKBONE.preprocess(image), expected)


def test_an_image_of_the_right_size_is_only_normalised() -> None:
    image = noise(32, 32)
    mean, std = (
        torch.tensor(v).reshape(3, 1, 1)
        for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    plain = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    torch.testing.assert_close(BACKBONE.preprocess(image), (plain - mean) / std)


def test_preprocessing_follows_the_checkpoint() -> None:
    config = tiny_config()
    backbone = ClipBackbone(
        random_clip(config),
        name="b",
        config=config,
        wordpieces=clip_wordpieces(),
        preprocess={"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash", "size": 224},
    )
    pixels = backbone.preprocess(noise(64, 20))
    assert pixels.shape == (3, 32, 32)
    expected = open_clip.image_transform(
        32, is_train=False, mean=(0.5,) * 3, std=(0.5,) * 3, resize_mode="squash"
    )(noise(64, 20))
    assert torch.equal(pixels, expected)
    assert backbone.fingerprint != BACKBONE.fingerprint
    grey = backbone.preprocess(Image.new("L", (40, 40), 255))
    assert torch.equal(grey, torch.ones(3, 32, 32))


def test_features_of_other_towers_are_the_models_own() -> None:
    backbone = random_backbone(vision_cfg=RESNET)
    pixels = torch.randn(3, 3, 64, 64)
    features = backbone.encode_image(pixels)
    assert features.shape == (3, 24)
    assert torch.equal(features, backbone._model.encode_image(pixels))
    assert not features.requires_grad


def test_features_do_not_depend_on_the_batch_mates() -> None:
    """In batches of a fixed size, as the engine encodes them."""
    features = BACKBONE.encode_image(PIXELS)
    others = torch.cat([PIXELS[:1], torch.randn(4, 3, 32, 32)])
    assert torch.equal(BACKBONE.encode_image(others)[0], features[0])


VISION = [
    {},
    {"quick_gelu": False},
    {"vision_cfg": {"pool_type": "avg"}},
    {"vision_cfg": {"pool_type": "avg", "final_ln_after_pool": True}},
    {"vision_cfg": {"no_ln_pre": True, "ls_init_value": 0.1}},
]
ATTENTION_POOLED = [
    {"vision_cfg": {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 3}}
]


@pytest.mark.parametrize("changes", [*VISION, *ATTENTION_POOLED])
@pytest.mark.parametrize("rows", [17, 40, 1600])
def test_features_are_the_models_own(
    changes: dict[str, Any], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image at a time, two, and all."""
    monkeypatch.setattr(_forward, "CPU_ROWS", rows)
    backbone = random_backbone(**changes)
    theirs = backbone._model.encode_image(PIXELS)
    with monkeypatch.context() as patch:
        # The library's own blocks do not run.
        for block in backbone._model.visual.transformer.resblocks:
            patch.setattr(block, "forward", None)
        pixels = PIXELS.clone()
        ours = backbone.encode_image(pixels)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert torch.equal(pixels, PIXELS)
    assert not ours.requires_grad


def test_what_follows_the_pixels_gets_the_models_own_forward() -> None:
    pixels = PIXELS.clone().requires_grad_()
    BACKBONE.encode_image(pixels).square().sum().backward()
    theirs = PIXELS.clone().requires_grad_()
    BACKBONE._model.encode_image(theirs).square().sum().backward()
    assert pixels.grad is not None
    assert torch.equal(pixels.grad, theirs.grad)

    def loss(x: Tensor) -> Tensor:
        return BACKBONE.encode_image(x).square().sum()

    torch.testing.assert_close(grad(loss)(PIXELS), theirs.grad, atol=1e-4, rtol=1e-4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = BACKBONE.encode_image(PIXELS)
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("changes", VISION)
def test_a_tap_that_changes_nothing(changes: dict[str, Any]) -> None:
    backbone = random_backbone(**changes)
    torch.testing.assert_close(
        backbone.encode_image(PIXELS, NoTap()), backbone.encode_image(PIXELS), atol=1e-5, rtol=1e-5
    )


class Prompted(NoTap):
    """Two rows behind the image's, replaced in the second block, and a low-rank update."""

    def __init__(self, rows: Tensor, a: Tensor, b: Tensor) -> None:
        self.rows, self.a, self.b = rows, a, b
        self.seen: list[tuple[str, int, int]] = []

    def tokens(self, tower: Any, layer: int, x: Tensor) -> Tensor:
        self.seen.append((tower, layer, x.shape[-2]))
        own = x if layer == 0 else x[..., :-2, :]
        return torch.cat([own, self.rows[layer].expand(*x.shape[:-2], 2, 48)], -2)

    def linear(self, tower: Any, layer: int, name: str, x: Tensor, y: Tensor) -> Tensor:
        return y + x @ self.a @ self.b if name == "q" else y


def test_visual_prompts_take_part_under_grad_and_vmap() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 2, 48), (48, 2), (2, 48))
    cells = [torch.randn(3, *shape, generator=generator) * 0.1 for shape in shapes]

    def loss(rows: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return BACKBONE.encode_image(PIXELS, Prompted(rows, a, b)).square().sum()

    stacked = vmap(grad(loss, argnums=(0, 1, 2)))(*cells)
    for i in range(3):
        leaves = [cell[i].clone().requires_grad_() for cell in cells]
        loss(*leaves).backward()
        for ours, leaf in zip(stacked, leaves, strict=True):
            assert leaf.grad is not None
            torch.testing.assert_close(ours[i], leaf.grad, atol=1e-5, rtol=1e-4)
            assert leaf.grad.abs().max() > 0
    tap = Prompted(*(cell[0] for cell in cells))
    BACKBONE.encode_image(PIXELS, tap)
    assert tap.seen == [("vision", 0, 17), ("vision", 1, 19)]


def test_a_tap_needs_transformer_blocks() -> None:
    resnet = random_backbone(vision_cfg=RESNET)
    assert (resnet.vision_width, resnet.vision_layers) == (None, 0)
    with pytest.raises(UnsupportedError, match="ModifiedResNet"):
        resnet.encode_image(torch.zeros(1, 3, 64, 64), NoTap())
    normed = random_backbone(vision_cfg={"qk_norm": True})
    with pytest.raises(UnsupportedError, match="block 0"):
        normed.encode_image(PIXELS, NoTap())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_cfg": {"qk_norm": True}}, "block 0"),
        ({"custom_text": True, "text_cfg": {"embed_cls": True}}, "class"),
        ({"vision_cfg": {"image_size": [32, 64]}}, "32x64 images"),
    ],
)
def test_towers_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        random_backbone(**changes)


def test_dimensions() -> None:
    assert (BACKBONE.dim, BACKBONE.width, BACKBONE.text_layers) == (24, 32, 3)
    assert (BACKBONE.vision_width, BACKBONE.vision_layers, BACKBONE.image_size) == (48, 2, 32)
    assert BACKBONE.context_length == 77
    assert BACKBONE.logit_scale == pytest.approx(1 / 0.07)
    BACKBONE.to("cpu")
    assert BACKBONE.device == torch.device("cpu")


def test_trainable_copies() -> None:
    copy = BACKBONE.trainable_copy()
    copy.eval()
    torch.testing.assert_close(copy(PIXELS), BACKBONE.encode_image(PIXELS), atol=1e-5, rtol=1e-5)
    copy.train()
    copy(PIXELS).square().sum().backward()
    with torch.no_grad():
        for value in copy.parameters():
            assert value.requires_grad
            value.add_(1.0)
    assert BACKBONE.fingerprint == random_backbone().fingerprint
    assert not any(value.requires_grad for value in BACKBONE._model.parameters())

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        fresh = BACKBONE.trainable_copy(pretrained=False)
        torch.manual_seed(7)
        again = BACKBONE.trainable_copy(pretrained=False)
    own = BACKBONE._model.visual.state_dict()
    assert {k: v.shape for k, v in fresh.state_dict().items()} == {
        k: v.shape for k, v in own.items()
    }
    assert not torch.equal(fresh.state_dict()["proj"], own["proj"])
    assert torch.equal(fresh.state_dict()["proj"], again.state_dict()["proj"])
    assert isinstance(fresh, nn.Module)
    assert fresh(PIXELS).shape == (5, 24)


def test_fingerprints() -> None:
    def of(seed: int = 0, **changes: Any) -> str:
        return random_backbone(seed, **changes).fingerprint

    assert of() == of()
    different = [of(), of(1), of(quick_gelu=False), of(text_cfg={"heads": 2})]
    assert len(set(different)) == 4


BIDIRECTIONAL = {
    "custom_text": True,
    "text_cfg": {
        "context_length": 16,
        "no_causal_mask": True,
        "pool_type": "last",
        "proj_bias": True,
    },
}


@pytest.mark.parametrize(
    "changes",
    [
        BIDIRECTIONAL,
        {"text_cfg": {"pool_type": "last", "context_length": 16}},
        {"text_cfg": {"pool_type": "first", "context_length": 16, "no_causal_mask": True}},
        {"custom_text": True, "text_cfg": {"pool_type": "eos", "eos_id": 49407}},
    ],
)
def test_other_kinds_of_text_tower(changes: dict[str, Any]) -> None:
    backbone = random_backbone(**changes)
    texts = ["a nevus.", "blurry or jagged edges"]
    expected = backbone._model.encode_text(
        open_clip.tokenize(texts, context_length=backbone.context_length)
    )
    torch.testing.assert_close(
        backbone.encode_text(backbone.embed(texts)), expected, atol=1e-5, rtol=1e-5
    )
    # Learned vectors that are words give the features of the text with those words.
    context = backbone.embed_words("a photo of").requires_grad_()
    prompts = backbone.embed([("", "nevus."), ("", "big melanoma.")])
    features = backbone.encode_text(prompts, context)
    words = backbone.embed(["a photo of nevus.", "a photo of big melanoma."])
    torch.testing.assert_close(features, backbone.encode_text(words), atol=1e-5, rtol=1e-5)
    features.sum().backward()
    assert context.grad is not None
    cells = torch.stack([context.detach(), -context.detach()])
    stacked = vmap(grad(lambda c: backbone.encode_text(prompts, c).sum()))(cells)
    torch.testing.assert_close(stacked[0], context.grad, atol=1e-5, rtol=1e-4)
