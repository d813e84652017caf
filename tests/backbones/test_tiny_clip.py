"""The shipped tiny-clip: size, loading, regenerated rows, and the story it is to show."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from benchmarks.tiny_clip_captions import OPENINGS, PHRASES
from benchmarks.tiny_clip_story import measure
from vipbench.backbones.loading import tiny_clip as _tiny_weights
from vipbench.backbones.loading.tiny_clip import TinyClipError, draw_embedding, load_tiny_clip

Loaded = tuple[open_clip.CLIP, dict[str, Any], str]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load_tiny_clip()


def test_weights_and_configuration_fit_into_8_mb() -> None:
    files = [f for f in resources.files("vipbench.backbones").iterdir() if "tiny_clip." in f.name]
    assert {f.name for f in files} == {"tiny_clip.safetensors", "tiny_clip.json"}
    assert sum(len(f.read_bytes()) for f in files) <= 8_000_000


def test_loading_twice_gives_the_same_and_leaves_the_random_state_alone(loaded: Loaded) -> None:
    before = torch.random.get_rng_state()
    model, config, digest = load_tiny_clip()
    assert torch.equal(torch.random.get_rng_state(), before)
    first = loaded[0].state_dict()
    assert (digest, config) == (loaded[2], loaded[1])
    assert all(torch.equal(value, first[name]) for name, value in model.state_dict().items())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_untrained_token_rows_are_drawn_again_from_the_seed(loaded: Loaded) -> None:
    model, config, _ = loaded
    drawn = draw_embedding(config)
    same = (model.token_embedding.weight == drawn).all(-1)  # (vocabulary,)
    trained = torch.tensor(config["token_ids"])
    assert not same[trained].any()
    assert int(same.sum()) == len(drawn) - len(trained)
    assert drawn.std().item() == pytest.approx(0.02, rel=0.01)
    # Pinned values: another torch drawing other numbers would be another model in silence.
    pinned = torch.tensor(config["embedding_check"])
    torch.testing.assert_close(drawn[-1, : len(pinned)], pinned, atol=1e-7, rtol=0)


def test_the_trained_tokens_are_those_of_the_captions(loaded: Loaded) -> None:
    tokenizer = open_clip.SimpleTokenizer()
    texts = [
        opening + joined
        for opening in OPENINGS
        for phrases in PHRASES.values()
        for phrase in phrases
        for joined in (phrase, f"{phrase}, {phrase}.", f"{phrase} and {phrase} with {phrase}")
    ]
    seen = set(tokenizer(texts).unique().tolist()) - {0}
    assert set(loaded[1]["token_ids"]) == seen


def copies(folder: Path) -> Path:
    for name in (_tiny_weights.WEIGHTS, _tiny_weights.CONFIG):
        (folder / name).write_bytes(
            resources.files("vipbench.backbones").joinpath(name).read_bytes()
        )
    return folder


def test_weights_that_do_not_belong_to_the_configuration_are_refused(tmp_path: Path) -> None:
    weights = copies(tmp_path) / _tiny_weights.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(TinyClipError, match=r"SHA-256 .* do not belong together"):
        load_tiny_clip(tmp_path)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    (copies(tmp_path) / _tiny_weights.WEIGHTS).unlink()
    with pytest.raises(TinyClipError, match=r"tiny_clip\.safetensors is missing"):
        load_tiny_clip(tmp_path)


def test_the_configuration_names_what_the_weights_are(loaded: Loaded) -> None:
    model, config, digest = loaded
    data = resources.files("vipbench.backbones").joinpath("tiny_clip.safetensors").read_bytes()
    assert hashlib.sha256(data).hexdigest() == digest == config["sha256"]
    assert config["quick_gelu"] is False
    assert config["command"].startswith("python benchmarks/train_tiny_clip.py --seed")
    assert model.context_length == 77
    assert tuple(model.visual.image_size) == (64, 64)
    json.dumps(config)


def test_the_story_holds(loaded: Loaded) -> None:
    figures = measure(loaded[0], loaded[1], seeds=(1, 2, 3))
    names = figures["zero-shot names"]
    assert names < 35
    assert figures["symptoms mean"] >= names + 15
    assert figures["symptoms max"] >= names + 15
    probe = [figures[f"linear probe {k}-shot"] for k in (1, 4, 16)]
    assert probe == sorted(probe)
    assert probe[0] + 5 < probe[-1] < 85
