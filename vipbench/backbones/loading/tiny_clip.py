"""tiny-clip: the small CLIP that comes with the package, and how its file is laid out.

Of the token embedding only the rows that training saw are stored; all others still are what they
were drawn as, and are drawn again from the seed in the configuration. That keeps the file small
although it serves CLIP's whole vocabulary.

Source: own work, trained by benchmarks/train_tiny_clip.py; see docs/tiny-clip.md.
"""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from vipbench.backbones.towers.clip_modules import CLIP

WEIGHTS = "tiny_clip.safetensors"
CONFIG = "tiny_clip.json"
TOKEN_ROWS = "token_rows"  # name of the stored rows (n, W) of the token embedding
_EMBEDDING = "token_embedding.weight"
_EMBEDDING_STD = 0.02  # what CLIP draws its token embedding with


class TinyClipError(RuntimeError):
    """The shipped weights are missing or damaged; the message says which file."""


def load_tiny_clip(folder: Path | None = None) -> tuple[CLIP, dict[str, Any], str]:
    """The model in fp32 and eval mode, its configuration, the weights file's SHA-256 in hex.

    folder: where the two files are; by default those that come with the package.
    Loading is safe (safetensors, JSON), works from an installed wheel, and leaves the global
    random state as it was. Raises TinyClipError.
    """
    weights, text = _read(WEIGHTS, folder), _read(CONFIG, folder)
    config: dict[str, Any] = json.loads(text)
    digest = hashlib.sha256(weights).hexdigest()
    if digest != config["sha256"]:
        raise TinyClipError(
            f"{WEIGHTS} has SHA-256 {digest}, but {CONFIG} names {config['sha256']}: the two do "
            "not match; reinstall vipbench, or train both again with "
            "benchmarks/train_tiny_clip.py"
        )
    return assemble(load(weights), config), config, digest


def assemble(stored: dict[str, Tensor], config: dict[str, Any]) -> CLIP:
    """The model of the stored tensors (fp16) and the configuration; fp32, eval mode."""
    state = {name: tensor.float() for name, tensor in stored.items() if name != TOKEN_ROWS}
    embedding = draw_embedding(config)
    embedding[torch.tensor(config["token_ids"])] = stored[TOKEN_ROWS].float()
    state[_EMBEDDING] = embedding
    model = build(config)
    model.load_state_dict(state)
    return model.requires_grad_(False).eval()


def disassemble(model: CLIP, config: dict[str, Any]) -> dict[str, Tensor]:
    """What is stored of `model`: its tensors in fp16, of the token embedding the trained rows."""
    state = model.state_dict()
    rows = state.pop(_EMBEDDING)[torch.tensor(config["token_ids"])]
    return {
        name: tensor.half().contiguous() for name, tensor in (state | {TOKEN_ROWS: rows}).items()
    }


def draw_embedding(config: dict[str, Any]) -> Tensor:
    """The token embedding before training, (vocabulary, W): N(0, 0.02) from its own seed."""
    text = config["text_cfg"]
    generator = torch.Generator().manual_seed(config["embedding_seed"])
    empty = torch.empty(text["vocab_size"], text["width"])
    return empty.normal_(std=_EMBEDDING_STD, generator=generator)


def build(config: dict[str, Any], seed: int = 0) -> CLIP:
    """An untrained model of the configured architecture, initial values drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # initial values come from the global generator
        return CLIP(config)


def _read(name: str, folder: Path | None) -> bytes:
    try:
        place = resources.files("vipbench.backbones") if folder is None else folder
        return place.joinpath(name).read_bytes()
    except FileNotFoundError:
        raise TinyClipError(
            f"{name} is missing beside vipbench.backbones; expected {WEIGHTS} and {CONFIG} there; "
            "reinstall vipbench, or train both with benchmarks/train_tiny_clip.py"
        ) from None
