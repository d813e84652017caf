"""What transformers: refuses, and how it says so."""

from __future__ import annotations

import json
import pickle
from functools import partial
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import transformers

from tests.backbones import hub_models
from tests.backbones.clips import pictures
from tests.backbones.test_transformers import SAVERS
from vipbench.backbones.towers.image import side_of_timm, side_of_transformers
from vipbench.errors import UsageError
from vipbench.plugins.registry import load_registry


@pytest.fixture
def refused(tmp_path: Path) -> Any:
    """`refused(argument, pattern)`: the backbone is refused with a message that fits."""

    def check(argument: object, pattern: str) -> None:
        with pytest.raises(UsageError, match=pattern):
            load_registry().backbone(f"transformers:{argument}")

    return check


def test_names(refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused("", "transformers:ORG/NAME")
    refused("nothing", "transformers:nothing: .*ORG/NAME")
    refused(tmp_path, r"config\.json cannot be read")


def test_kinds_and_code(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    refused(tmp_path, "of type 'bert'; known are clip, siglip, siglip2, vision-text-dual-encoder")
    own = {"model_type": "pair", "auto_map": {"AutoModel": "own.Pair"}}
    (tmp_path / "config.json").write_text(json.dumps(own))
    refused(tmp_path, r"\('pair'\).*write transformers:.*\+remote-code")


def test_a_pickle_that_would_run_code_is_refused(refused: Any, tmp_path: Path) -> None:
    hub_models.save_clip(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    refused(tmp_path, r"has no model\.safetensors.*or pytorch_model\.bin")
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": print}))
    refused(tmp_path, r"pytorch_model\.bin is not a plain file of weights.*refused")


def test_weights_that_do_not_fit(refused: Any, tmp_path: Path) -> None:
    hub_models.save_clip(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 4
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(tmp_path, r"do not fit its config\.json: \d+ are missing or of another shape")


def test_weights_that_are_no_numbers(refused: Any, tmp_path: Path) -> None:
    model = hub_models.save_dual(tmp_path)
    with torch.no_grad():
        model.text_projection.weight[0, 0] = torch.nan
    model.save_pretrained(tmp_path)
    refused(tmp_path, r"hold NaN or infinity \(text_projection\.weight\)")


def test_missing_preprocessing(refused: Any, tmp_path: Path) -> None:
    hub_models.save_dual(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    refused(tmp_path, r"no preprocessor_config\.json.*put the one of its image tower there")


def test_images_prepared_by_default_are_noted(tmp_path: Path) -> None:
    hub_models.save_clip(tmp_path)
    assert load_registry().backbone(f"transformers:{tmp_path}")[0].notes == ()
    (tmp_path / "preprocessor_config.json").unlink()
    (note,) = load_registry().backbone(f"transformers:{tmp_path}")[0].notes
    assert "no preprocessor_config.json" in note
    assert "CLIPImageProcessor" in note


def test_damaged_files(refused: Any, tmp_path: Path) -> None:
    hub_models.save_clip(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 100)
    refused(tmp_path, r"model\.safetensors is damaged")


def test_weights_without_a_place_in_the_model(refused: Any, tmp_path: Path) -> None:
    model = hub_models.save_dual(tmp_path)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    weights["text_projection.lora_A.weight"] = torch.zeros(4, 32)
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    refused(tmp_path, r"1 have no place in the model \(text_projection\.lora_A\.weight\)")


@pytest.mark.parametrize("kind", ["clip", "siglip2", "vit-bert"])
def test_no_tokenizer_files(kind: str, refused: Any, tmp_path: Path) -> None:
    SAVERS[kind](tmp_path)
    path = tmp_path / "tokenizer.json"
    state = json.loads(path.read_text())
    words = [token["content"] for token in state["added_tokens"]]
    state["model"]["vocab"] = {word: i for i, word in enumerate(words)}
    state["model"]["merges"] = []
    path.write_text(json.dumps(state))
    refused(tmp_path, "its tokenizer cannot tell texts apart")
    path.unlink()
    refused(tmp_path, r"none of tokenizer\.json, ")
    if kind == "clip":
        (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "<|endoftext|>": 2}))
        refused(tmp_path, r"vocab\.json without merges\.txt")


def test_a_text_tower_that_pools_another_token(refused: Any, tmp_path: Path) -> None:
    hub_models.save_clip(tmp_path, eos_token_id=11)
    refused(tmp_path, "pools the token 11 .*its tokenizer ends texts with 49407")


def test_a_scale_that_is_no_logarithm(refused: Any, tmp_path: Path) -> None:
    def with_scale(value: float, save: Any) -> tuple[str, ...]:
        model = save(tmp_path)
        with torch.no_grad():
            model.logit_scale.fill_(value)
        model.save_pretrained(tmp_path)
        backbone, _ = load_registry().backbone(f"transformers:{tmp_path}")
        return backbone.notes

    assert with_scale(4.625, hub_models.save_clip) == ()  # ln 100 in bf16
    (printed,) = with_scale(14.2857, hub_models.save_clip)
    assert "14.2857" in printed
    assert "2.6593" in printed
    with pytest.raises(UsageError, match=r"logit_scale.* 100,.*log\(100\) = 4\.605"):
        with_scale(100, hub_models.save_clip)
    assert with_scale(4.765, hub_models.save_siglip) == ()  # the published SigLIP's
    assert with_scale(14.2857, hub_models.save_siglip) != ()


@pytest.mark.parametrize("lost", ["layers", "layers.0.attention.q_proj", "blocks.0.attn.gate"])
def test_a_version_that_names_its_parts_otherwise(lost: str) -> None:
    module, _, name = lost.rpartition(".")
    if lost.startswith("blocks"):
        library: Any = timm
        model = timm.create_model("vit_tiny_patch16_224", depth=1)
        read = partial(side_of_timm, model, None, 224, model, None)
    else:
        library = transformers
        sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
        model = transformers.ViTModel(transformers.ViTConfig(**sizes, num_hidden_layers=1))
        read = partial(side_of_transformers, model, None, torch.nn.Identity)
    part = model.get_submodule(module)
    delattr(part, name)
    with pytest.raises(UsageError) as refusal:
        read()
    tested = next(r for r in requires("vipbench") or () if r.startswith(library.__name__))
    for fact in (type(part).__name__, name, library.__version__, tested):
        assert fact in str(refusal.value)


def test_own_code_runs_only_where_it_is_reported(refused: Any, tmp_path: Path) -> None:
    """The form of KEEP: a timm tower with a head, a BERT with its pooler."""
    model, tokenizer = hub_models.save_own_code(tmp_path)
    refused(tmp_path, r"\+remote-code")

    backbone, _ = load_registry().backbone(f"transformers:{tmp_path}+remote-code")
    tokens = tokenizer(["a photo of a nevus", "lung"], padding=True, return_tensors="pt")
    tokens.pop("token_type_ids", None)
    with torch.no_grad():
        theirs = model.text(**tokens).pooler_output
        pixels = torch.randn(2, 3, 32, 32)
        images = model.visual_head(model.visual(pixels))
    ours = backbone.encode_text(backbone.embed(["a photo of a nevus", "lung"]))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    torch.testing.assert_close(backbone.encode_image(pixels), images, atol=1e-5, rtol=0)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    given = processor(images=pictures(), return_tensors="pt").pixel_values
    with torch.no_grad():
        images = model.visual_head(model.visual(given))
    pixels = torch.stack([backbone.preprocess(image) for image in pictures()])
    torch.testing.assert_close(backbone.encode_image(pixels), images, atol=1e-5, rtol=0)
    assert (backbone.vision_width, backbone.vision_layers) == (48, 2)
