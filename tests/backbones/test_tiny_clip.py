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
from vipbench.backbones.open_clip import tiny_clip
from vipbench.backbones.towers.clip_modules import CLIP

Loaded = tuple[CLIP, dict[str, Any], str]


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


def reference(config: dict[str, Any], seed: int) -> open_clip.CLIP:
    names = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return open_clip.CLIP(**{name: config[name] for name in names})


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_its_modules_equal_open_clips_bit_for_bit(loaded: Loaded, quick_gelu: bool) -> None:
    config = {**loaded[1], "quick_gelu": quick_gelu}
    own, other = _tiny_weights.build(config, 3), reference(config, 3)
    ours, theirs = own.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    assert [n for n, _ in own.named_parameters()] == [n for n, _ in other.named_parameters()]
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    tokens = open_clip.tokenize(["a lesion", "a lesion with a blue veil"])
    for training in (True, False):
        own.train(training)
        other.train(training)
        assert torch.equal(own.encode_image(pixels), other.encode_image(pixels))
        assert torch.equal(own.encode_text(tokens, True), other.encode_text(tokens, True))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(own.encode_image(pixels), other.encode_image(pixels))
    for model in (own, other):
        model.encode_image(pixels).square().sum().backward()
    pairs = zip(own.visual.parameters(), other.visual.parameters(), strict=True)
    assert all(torch.equal(p.grad, q.grad) for p, q in pairs)


def test_a_tower_with_new_weights_equals_open_clips(loaded: Loaded) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        fresh = tiny_clip(None).trainable_copy(pretrained=False).state_dict()
    theirs = reference(loaded[1], 5).visual.state_dict()
    assert list(fresh) == list(theirs)
    assert all(torch.equal(value, theirs[name]) for name, value in fresh.items())


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
    with pytest.raises(TinyClipError, match=r"SHA-256 "):
        load_tiny_clip(tmp_path)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    (copies(tmp_path) / _tiny_weights.WEIGHTS).unlink()
    with pytest.raises(TinyClipError, match=r"tiny_clip\.safetensors"):
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
