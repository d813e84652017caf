"""Loaded models from Python, kept as files that the ordinary names load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import transformers
from torch import Tensor, nn
from torchvision import transforms

from tests.backbones.clips import pictures, random_clip, tiny_config
from tests.backbones.hub_models import save_clip, save_dual, save_siglip
from vipbench.backbones.loading.given import keep_model
from vipbench.backbones.loading.openclip import load_openclip
from vipbench.backbones.loading.transformers import load_transformers
from vipbench.errors import UsageError

TEXTS = ["a photo of a melanoma", "Nevus."]


def load(source: str) -> Any:
    """The backbone, by its ordinary name."""
    name, _, argument = source.partition(":")
    return (load_openclip if name == "openclip" else load_transformers)(argument)


def unit(x: Any) -> Tensor:
    """Features of unit length."""
    return nn.functional.normalize(getattr(x, "pooler_output", x), dim=-1)


def transform(**changes: Any) -> Any:
    """An evaluation transform of open_clip to 32 pixels."""
    return open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**{"size": 32, **changes}), is_train=False
    )


OPENCLIP = {
    "OpenAI's": ({}, {}),
    "GELU, other sizes": (
        {"quick_gelu": False, "vision_cfg": {"mlp_ratio": 3.0, "patch_size": 16}},
        {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.3), "interpolation": "bilinear"},
    ),
    "squashed": ({}, {"resize_mode": "squash"}),
    "with borders": ({}, {"resize_mode": "longest", "fill_color": 7}),
    "pooled": (
        {"vision_cfg": {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}},
        {},
    ),
    "residual network": (
        {"vision_cfg": {"layers": [1, 1, 1, 1], "width": 32, "head_width": 64, "patch_size": None}},
        {},
    ),
    "another text class": ({"custom_text": True}, {}),
    "epsilon": ({"text_cfg": {"norm_kwargs": {"eps": 1e-3}, "mlp_ratio": 2.0}}, {}),
}


@pytest.mark.parametrize("name", OPENCLIP)
def test_a_model_of_open_clip_is_loaded_as_it_was(tmp_path: Path, name: str) -> None:
    """Pixels and features of the backbone by its name equal the model's own, to 1e-5."""
    changes, cfg = OPENCLIP[name]
    model = random_clip(tiny_config(**changes))
    preprocess, tokenizer = transform(**cfg), open_clip.tokenizer.SimpleTokenizer()
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    source = keep_model("ours", (model, preprocess, tokenizer), tmp_path)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model.eval()
    backbone = load(source)
    pixels = torch.stack([preprocess(image) for image in pictures()])
    mine = torch.stack([backbone.preprocess(image) for image in pictures()])
    assert torch.allclose(mine, pixels, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(
            unit(backbone.encode_image(mine)), unit(model.encode_image(pixels)), atol=1e-5
        )
        assert torch.allclose(
            unit(backbone.encode_text(backbone.embed(TEXTS))),
            unit(model.encode_text(tokenizer(TEXTS))),
            atol=1e-5,
        )
    assert keep_model("other", (model, preprocess, tokenizer), tmp_path) == source
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("kind", ["clip", "siglip", "pair"])
def test_a_model_of_transformers_is_loaded_as_it_was(tmp_path: Path, kind: str) -> None:
    """Features of the backbone by its name equal the model's own, to 1e-5."""
    saved = tmp_path / "saved"
    saved.mkdir()
    {"clip": save_clip, "siglip": save_siglip, "pair": save_dual}[kind](saved)
    model = transformers.AutoModel.from_pretrained(saved)
    images = transformers.AutoImageProcessor.from_pretrained(saved)
    words = transformers.AutoTokenizer.from_pretrained(saved)
    given: tuple[Any, ...] = (model, images, words)
    if kind == "clip":
        given = (model, transformers.CLIPProcessor(image_processor=images, tokenizer=words))
    source = keep_model("ours", given, tmp_path / "kept")
    assert source.startswith("transformers:")
    backbone, named = load(source), load(f"transformers:{saved}")
    pixels = torch.stack([backbone.preprocess(image) for image in pictures()])
    assert torch.equal(pixels, torch.stack([named.preprocess(image) for image in pictures()]))
    with torch.no_grad():
        theirs = model.eval().get_image_features(pixel_values=pixels)
        assert torch.allclose(unit(backbone.encode_image(pixels)), unit(theirs), atol=1e-5)
    assert backbone.fingerprint == named.fingerprint


def changed_block(model: Any) -> Any:
    """A model with a tower that no configuration describes."""
    block = model.visual.transformer.resblocks[0]
    block.mlp.gelu = nn.Tanh()
    return model


REFUSED: dict[str, tuple[Any, str]] = {
    "training transform": (
        lambda m, t: (
            m,
            open_clip.transform.image_transform_v2(
                open_clip.transform.PreprocessCfg(size=32), is_train=True
            ),
            t,
        ),
        "RandomResizedCrop",
    ),
    "own step": (
        lambda m, t: (m, transforms.Compose([*transform().transforms, np.abs]), t),
        "absolute",
    ),
    "function": (lambda m, t: (m, lambda image: image, t), "function"),
    "another size": (lambda m, t: (m, transform(size=64), t), "64"),
    "two transforms": (lambda m, t: (m, transform(), transform()), "get_tokenizer"),
    "no tokenizer": (lambda m, t: (m, transform(), str.split), "tokenizer"),
    "two values": (lambda m, t: (m, transform()), "(model, preprocess, tokenizer)"),
    "changed tower": (lambda m, t: (changed_block(m), transform(), t), "openclip:ARCH"),
    "another module": (lambda m, t: (nn.Linear(2, 2), transform(), t), "Linear"),
    "no model": (lambda m, t: ("ViT-B-16", transform(), t), "str"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_by_name(tmp_path: Path, name: str) -> None:
    """The message names the backbone and what is wrong; nothing is left behind."""
    make, named = REFUSED[name]
    given = make(random_clip(tiny_config()), open_clip.tokenizer.SimpleTokenizer())
    with pytest.raises(UsageError) as raised:
        keep_model("ours", given, tmp_path)
    assert "'ours'" in str(raised.value)
    assert named in str(raised.value)
    assert not list(tmp_path.iterdir())
