"""Adapters of peft, whose files are written here by hand: the library's forward with them, or a
refusal that names what is not applied."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from tests.backbones import hub_models
from tests.backbones.test_transformers import CLASS_TEXTS
from vipbench.errors import UsageError
from vipbench.plugins.registry import load_registry

Q = "text_model.encoder.layers.1.self_attn.q_proj"
FC = "vision_model.encoder.layers.0.mlp.fc1"
WORDS = "text_model.embeddings.token_embedding"
PATCHES = "vision_model.embeddings.patch_embedding"
HEAD = "visual_projection"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision-text pair with CLIP's image tower."""
    folder = tmp_path_factory.mktemp("base")
    hub_models.save_clip(folder)
    return folder


def low_rank(model: Any, names: tuple[str, ...], rank: int = 4) -> dict[str, Tensor]:
    """Random updates of these modules, under peft's names."""
    generator = torch.Generator().manual_seed(3)
    found: dict[str, Tensor] = {}
    for name in names:
        layer = model.get_submodule(name)
        rows = layer.weight.shape[0]
        a = torch.randn(rank, *layer.weight.shape[1:], generator=generator) * 0.3
        b = torch.randn(rows, rank, *[1] * (layer.weight.dim() - 2), generator=generator) * 0.3
        ends = ("lora_A.weight", "lora_B.weight")
        if isinstance(layer, nn.Embedding):
            a, b, ends = (
                b.T.contiguous(),
                a.T.contiguous(),
                ("lora_embedding_A", "lora_embedding_B"),
            )
        found |= {f"base_model.model.{name}.{end}": v for end, v in zip(ends, (a, b), strict=True)}
    return found


def write(folder: Path, weights: dict[str, Tensor], file: str = "", **settings: Any) -> None:
    config = {
        "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none",
        "lora_dropout": 0.1, "peft_version": "0.18.0", "init_lora_weights": True,
        "loftq_config": {}, "qalora_group_size": 16, "fan_in_fan_out": False,
        "base_model_name_or_path": "somewhere/else", **settings,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if file.endswith(".bin"):
        torch.save(weights, folder / file)
    else:
        safetensors.torch.save_file(weights, folder / "adapter_model.safetensors")


def hook(layer: Any, a: Tensor, b: Tensor, scale: float, magnitude: Tensor | None = None) -> None:
    """As peft does it: beside the layer's own output, in each forward pass."""

    def linear(module: Any, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        update = F.linear(F.linear(given[0], a), b) * scale
        if magnitude is None:
            return out + update
        norm = torch.linalg.vector_norm(module.weight + scale * b @ a, dim=1)
        return (F.linear(given[0], module.weight) + update) * (magnitude / norm) + module.bias

    def embedding(module: Any, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out + F.embedding(given[0], a.T) @ b.T * scale

    def convolution(module: Any, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out + F.conv2d(F.conv2d(given[0], a, stride=module.stride), b) * scale

    ways = {nn.Embedding: embedding, nn.Conv2d: convolution}
    layer.register_forward_hook(ways.get(type(layer), linear))


def features(model: Any, folder: Path) -> tuple[Tensor, Tensor]:
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        CLASS_TEXTS, padding=True, return_tensors="pt"
    )
    return (
        model.get_text_features(**tokens).pooler_output,
        model.get_image_features(pixels()).pooler_output,
    )


def pixels() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


CASES: dict[str, dict[str, Any]] = {
    "both towers": {},
    "rank-stabilised": {"use_rslora": True},
    "patterns": {"rank_pattern": {r".*fc1": 2}, "alpha_pattern": {"self_attn.q_proj": 32}},
    "DoRA": {"use_dora": True},
    "embedding and convolution": {"names": (WORDS, PATCHES)},
    "other weights beside": {"bias": "all", "modules_to_save": [HEAD]},
    "a state dict": {"file": "adapter_model.bin"},
    "alone": {"alone": True},
    "alone, the base by its path": {"alone": True, "relative": True},
}


@pytest.mark.parametrize("kind", CASES)
@torch.no_grad()
def test_adapters_are_applied_as_peft_does(
    kind: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dict(CASES[kind])
    names = settings.pop("names", (Q, FC))
    alone, relative = settings.pop("alone", False), settings.pop("relative", False)
    file = settings.pop("file", "")
    folder = tmp_path / "adapter"
    if relative:  # beside the working directory lies another folder of the base's name
        (tmp_path / "work" / "here").mkdir(parents=True)
        (tmp_path / "work" / "base").mkdir()
        monkeypatch.chdir(tmp_path / "work" / "here")
    if alone:
        where = shutil.copytree(base, tmp_path / "base") if relative else base
        settings["base_model_name_or_path"] = "../base" if relative else str(where)
    else:
        shutil.copytree(base, folder)
    model = transformers.CLIPModel.from_pretrained(base).eval()
    patterns = settings.get("rank_pattern", {})
    weights: dict[str, Tensor] = {}
    for name in names:
        weights |= low_rank(model, (name,), 2 if patterns and name == FC else 4)
    for name in names:
        a, b = (v for k, v in weights.items() if k.startswith(f"base_model.model.{name}."))
        rank = 2 if patterns and name == FC else 4
        alpha = 32 if patterns and name == Q else 8
        magnitude = None
        if settings.get("use_dora"):
            magnitude = torch.linspace(0.5, 2, len(model.get_submodule(name).weight))
            weights[f"base_model.model.{name}.lora_magnitude_vector"] = magnitude
        scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
        hook(model.get_submodule(name), a, b, scale, magnitude)
    if settings.get("modules_to_save"):
        for name, at in (
            (f"{HEAD}.weight", f"{HEAD}.weight"),
            (f"{Q}.bias", f"{Q}.base_layer.bias"),
        ):
            value = model.get_parameter(name)
            value.copy_(torch.linspace(-1, 1, value.numel()).reshape(value.shape))
            weights[f"base_model.model.{at}"] = value.clone()
    write(folder, weights, file, **settings)
    backbone: Any = load_registry().backbone(f"transformers:{folder}")[0]
    texts, images = features(model, base)
    ours = backbone.encode_text(backbone.embed(CLASS_TEXTS))
    torch.testing.assert_close(ours, texts, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(backbone.encode_image(pixels()), images, atol=1e-5, rtol=1e-5)
    plain: Any = load_registry().backbone(f"transformers:{base}")[0]
    assert backbone.fingerprint != plain.fingerprint
    assert not torch.allclose(ours, plain.encode_text(plain.embed(CLASS_TEXTS)), atol=1e-2)
    assert any("LoRA" in note for note in backbone.notes)


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"peft_type": "IA3"}, "'IA3'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out True"),
        ({"trainable_token_indices": [3]}, r"trainable_token_indices \[3\]"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"r": 8}, f"'{Q}'"),
        ({"use_dora": True}, f"'{Q}'"),
        ({"weight": f"base_model.model.{Q}.lora_B.bias"}, r"q_proj\.lora_B\.bias'"),
        ({"weight": "base_model.model.strange.weight"}, r"strange\.weight'"),
        ({"weight": f"{Q}.lora_A.weight"}, r"lora_A\.weight'"),
    ],
)
def test_adapters_that_are_refused(
    settings: dict[str, Any], facts: str, base: Path, tmp_path: Path
) -> None:
    model = transformers.CLIPModel.from_pretrained(base)
    weights = low_rank(model, (Q,))
    if name := settings.pop("weight", ""):
        weights[name] = torch.zeros(4)
    write(tmp_path / "a", weights, base_model_name_or_path=str(base), **settings)
    with pytest.raises(UsageError, match=f"adapter.*{facts}.*merge_and_unload"):
        load_registry().backbone(f"transformers:{tmp_path / 'a'}")


def test_half_an_adapter_and_one_without_its_base(base: Path, tmp_path: Path) -> None:
    def refused(folder: Path, facts: str) -> None:
        with pytest.raises(UsageError, match=facts):
            load_registry().backbone(f"transformers:{folder}")

    folder = tmp_path / "a"
    write(folder, {}, base_model_name_or_path=str(tmp_path / "gone"))
    refused(folder, r"holds an adapter alone, and the base model .*gone'\) is not there")
    (folder / "adapter_model.safetensors").unlink()
    both = shutil.copytree(base, tmp_path / "both")
    shutil.copy(folder / "adapter_config.json", both)
    refused(both, r"adapter of .* has no adapter_model\.safetensors or adapter_model\.bin")
    (both / "adapter_config.json").rename(both / "adapter_model.bin")
    refused(both, r"adapter of .* has no adapter_config\.json")
