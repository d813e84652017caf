"""Small random CLIPs, and open_clip's own forward pass to hold them against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor, nn

from vipbench.api import Prompts
from vipbench.backbones.towers.clip import ClipBackbone, clip_wordpieces


def tiny_config(**changes: Any) -> dict[str, Any]:
    """A two-tower configuration of a few thousand weights beside the vocabulary."""
    config: dict[str, Any] = {
        "embed_dim": 24,
        "quick_gelu": True,
        "text_cfg": {
            "context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 3
        },
        "vision_cfg": {
            "image_size": 32, "patch_size": 8, "width": 48, "head_width": 16, "layers": 2
        },
    }  # fmt: skip
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    return config


def random_clip(config: dict[str, Any], seed: int = 0) -> Any:
    """An open_clip model whose every weight is random, biases and normalisations too."""
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(**{k: v for k, v in config.items() if k != "custom_text"})
        for name, value in model.named_parameters():
            if value.dim() == 1:
                nn.init.normal_(value, mean=1.0 if name.endswith("weight") else 0.0, std=0.1)
    return model.eval()


def pictures() -> list[Image.Image]:
    """Not square, larger and smaller than a tower's 32 pixels, and one of just these."""
    rng = np.random.default_rng(0)
    blocks = Image.fromarray(rng.integers(0, 256, (7, 9, 3)).astype(np.uint8))
    sizes = ((66, 44), (41, 60), (31, 90), (17, 20), (64, 16), (32, 32))
    return [blocks.resize(size, Image.Resampling.BICUBIC) for size in sizes]


def class_folder(folder: Path, *classes: str) -> Path:
    """A dataset of random images, two of each class and split."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for i in range(2):
                pixels = rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


def random_backbone(seed: int = 0, **changes: Any) -> ClipBackbone:
    """A backbone around `random_clip(tiny_config(**changes))`."""
    config = tiny_config(**changes)
    model = random_clip(config, seed)
    return ClipBackbone(model, name="random", config=config, wordpieces=clip_wordpieces())


def full_length_features(model: Any, prompts: Prompts, context: Tensor) -> Tensor:
    """Features (*L,D) as the official programs get them: the rows of each text put together one
    by one, padded to the full length, through open_clip's own transformer."""
    m = context.shape[-2]
    lead = torch.broadcast_shapes(prompts.shape, context.shape[:-2])
    tokens = prompts.tokens.expand(*lead, -1).reshape(-1, prompts.tokens.shape[-1])
    lengths = prompts.lengths.expand(lead).flatten().tolist()
    assert prompts.gaps is not None
    n_gaps = prompts.gaps.shape[-1]
    gaps = prompts.gaps.expand(*lead, -1).reshape(-1, n_gaps).tolist()
    contexts = context.expand(*lead, -1, -1).reshape(-1, *context.shape[-2:])
    sequences, ends = [], []
    for ids, length, places, vectors in zip(tokens, lengths, gaps, contexts, strict=True):
        words = model.token_embedding(ids[:length])
        rows, row, used = [], 0, 0
        for i, place in enumerate(places):
            size = m // n_gaps if i < n_gaps - 1 else m - used
            rows += [words[row:place], vectors[used : used + size]]
            row, used = place, used + size
        sequence = torch.cat([*rows, words[row:]])
        ends.append(len(sequence) - 1)
        padding = model.token_embedding.weight[:1].expand(77 - len(sequence), -1)
        sequences.append(torch.cat([sequence, padding]))
    x = torch.stack(sequences) + model.positional_embedding
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
    x = x[torch.arange(len(ends)), ends] @ model.text_projection
    return x.reshape(*lead, -1)
