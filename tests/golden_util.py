"""The tiny CLIPs that the golden files were recorded on, as backbones."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch

from vipbench.backbones.towers.clip import ClipBackbone, clip_wordpieces

# `benchmarks.gpu` holds another device to the same figures, which are a CPU's.
DEVICE = torch.device(os.environ.get("VIPBENCH_TEST_DEVICE", "cpu"))


def limit(atol: float) -> float:
    """How far from a recorded figure a test may be: `atol` on a CPU, at least 1e-4 elsewhere."""
    return atol if DEVICE.type == "cpu" else max(atol, 1e-4)


def load_golden(path: Path) -> dict[str, Any]:
    """The arrays of a golden file, and `meta`, its parsed meta_json."""
    with np.load(path, allow_pickle=False) as file:
        arrays: dict[str, Any] = {name: file[name] for name in file.files}
    arrays["meta"] = json.loads(str(arrays.pop("meta_json")))
    return arrays


def golden_backbone(golden: dict[str, Any]) -> ClipBackbone:
    """The backbone of a file from `load_golden`.

    Token rows that the file lacks are NaN, so that a wrong token shows; where the file has no
    image tower, a random one of one layer stands in.
    """
    weights = {
        name.removeprefix("clip/"): torch.from_numpy(np.array(value))
        for name, value in golden.items()
        if name.startswith("clip/")
    }
    n_layers = 1 + max(
        int(name.split(".")[2]) for name in weights if name.startswith("transformer.resblocks.")
    )
    width = weights["ln_final.weight"].shape[0]
    dim = weights["text_projection"].shape[1]
    config = {
        "embed_dim": dim,
        "quick_gelu": True,
        "text_cfg": {
            "context_length": weights["positional_embedding"].shape[0],
            "vocab_size": 49408,
            "width": width,
            "heads": 2,
            "layers": n_layers,
        },
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1},
    }
    if "visual.conv1.weight" in weights:
        vision_width, _, patch, _ = weights["visual.conv1.weight"].shape
        grid = math.isqrt(weights["visual.positional_embedding"].shape[0] - 1)
        config["vision_cfg"] = {
            "image_size": grid * patch,
            "patch_size": patch,
            "width": vision_width,
            "layers": 1
            + max(
                int(name.split(".")[3])
                for name in weights
                if name.startswith("visual.transformer.resblocks.")
            ),
        }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**config)
    words = torch.full((49408, width), math.nan)
    words[torch.from_numpy(golden["used_token_ids"])] = torch.from_numpy(
        golden["token_embedding_rows"]
    )
    # Token 0 pads short texts; its row may be absent, and must be finite.
    words[0] = words[0].nan_to_num(0.0)
    weights["token_embedding.weight"] = words
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert all(name.startswith("visual.") for name in missing), missing
    assert "visual.conv1.weight" not in weights or not missing, missing
    backbone = ClipBackbone(model, name="golden", config=config, wordpieces=clip_wordpieces())
    backbone.to(DEVICE)
    return backbone
