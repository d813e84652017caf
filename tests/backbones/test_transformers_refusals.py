"""What transformers: refuses, and how it says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.backbones import hub_models
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
    refused("", "needs to know which model: transformers:ORG/NAME")
    refused("nothing", "no such folder, and not of the form ORG/NAME")
    refused(tmp_path, r"config\.json cannot be read")


def test_kinds_and_code(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    refused(tmp_path, "of type 'bert'; known are clip, siglip, siglip2, vision-text-dual-encoder")
    own = {"model_type": "pair", "auto_map": {"AutoModel": "own.Pair"}}
    (tmp_path / "config.json").write_text(json.dumps(own))
    refused(tmp_path, r"code of its own \('pair'\).*if you trust its author, write .*\+remote-code")


def test_pickles_are_not_read(refused: Any, tmp_path: Path) -> None:
    model = hub_models.save_clip(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    refused(tmp_path, r"no model\.safetensors; it holds pytorch_model\.bin.*can run code")


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


def test_resizing_that_is_not_supported(refused: Any, tmp_path: Path) -> None:
    hub_models.save_clip(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    stated = json.loads(path.read_text())
    path.write_text(json.dumps({**stated, "size": {"shortest_edge": 36}}))
    refused(tmp_path, "resizes images to 36 and cuts out 32 pixels")


def test_damaged_files(refused: Any, tmp_path: Path) -> None:
    hub_models.save_clip(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 100)
    refused(tmp_path, "cannot be loaded")


def test_own_code_runs_only_where_it_is_said(refused: Any, tmp_path: Path) -> None:
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
    assert (backbone.vision_width, backbone.vision_layers) == (48, 2)
