"""Prompt files of others: what they say is checked before anything of it is used."""

from __future__ import annotations

import copy
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

import vipbench
from vipbench.backbones.open_clip import tiny_clip
from vipbench.engine.explain import prompt_card
from vipbench.errors import UsageError

Card = dict[str, Any]
Change = Callable[[Card, dict[str, torch.Tensor]], object]
IMAGE = Image.fromarray(np.full((28, 28), 230, np.uint8))


@pytest.fixture(scope="module")
def honest() -> tuple[Card, dict[str, torch.Tensor]]:
    """Card and tensors of four context vectors for two classes."""
    towers = tiny_clip(None)
    info = {"shots": 1, "n_support": 2, "n_classes": 2, "backbone": towers.name,
            "dim": towers.dim, "width": towers.width, "dataset": "toy"}  # fmt: skip
    card = {
        "format": "vipbench-prompt", "version": 2, "row": "coop", "method": "coop",
        "method_revision": 1, "hparams": {"n_ctx": 4}, "info": info, "seed": 1,
        "class_names": ["dark", "bright"], "templates": ["a photo of {}."], "symptoms": None,
        "descriptions": None, "backbone": "tiny-clip", "dataset": "toy",
        "backbone_fingerprint": towers.fingerprint, "dataset_fingerprint": "0", "pixels": None,
    }  # fmt: skip
    from vipbench.plugins.registry import load_registry

    card["method_revision"] = load_registry().method("coop")[0].revision
    return card, {"context": torch.zeros(4, towers.width)}


def written(
    path: Path, honest: tuple[Card, dict[str, torch.Tensor]], change: Change | None = None
) -> Path:
    card, tensors = copy.deepcopy(honest[0]), dict(honest[1])
    text = None if change is None else change(card, tensors)
    content = text if isinstance(text, str) else json.dumps(card)
    path.write_bytes(save(tensors, {"vipbench": content}))
    return path


def named(key: str, value: object) -> Change:
    return lambda card, tensors: card.update({key: value})


def tensor(change: Callable[[torch.Tensor], torch.Tensor], name: str = "context") -> Change:
    return lambda card, tensors: tensors.update({name: change(tensors["context"])})


CHANGES: dict[str, tuple[Change, str]] = {
    "no list of classes": (named("class_names", "dark"), "class_names"),
    "equal classes": (named("class_names", ["dark_red", "Dark red"]), "class_names"),
    "a class of two lines": (named("class_names", ["dark", "b\nx.png  dark  1.0"]), "class_names"),
    "a class with an escape": (named("class_names", ["dark", "\x1b]52;c;eA==\x07"]), "class_names"),
    "another number of classes": (named("class_names", ["dark", "bright", "red"]), "3 classes"),
    "a template without its place": (named("templates", ["a photo"]), "templates"),
    "no template": (named("templates", []), "templates"),
    "no seed": (named("seed", "1"), "seed"),
    "other shots": (lambda c, t: c["info"].update(shots="many"), "shots"),
    "another width": (lambda c, t: c["info"].update(width=10**12), "width"),
    "settings in depth": (named("hparams", {"n_ctx": [[4]]}), "hparams"),
    "a card without end": (lambda c, t: "[" * 100_000, "card"),
    "no card": (lambda c, t: "[]", "card"),
    "weights of this machine": (named("backbone", "openclip:RN50+gelu@/dev/zero"), "/dev/zero"),
    "weights beside": (named("backbone", "transformers:./x"), "--backbone"),
    "a range without end": (
        named("pixels", {"low": 0, "high": 1e999, "source": "", "clips_low": 0, "clips_high": 0}),
        "inf",
    ),
    "nothing learned": (lambda c, t: t.clear() or t.update(other=torch.ones(1)), "context"),
    "NaN": (tensor(lambda x: x * float("nan")), "not finite"),
    "another shape": (tensor(lambda x: x[1:].clone()), "(3, 64)"),
    "symptoms of one class": (named("symptoms", [["a"]]), "texts"),
    "another type": (tensor(lambda x: x.to(torch.complex64)), "complex64"),
    "the name of a function": (tensor(torch.ones_like, "predict"), "'predict'"),
    "the name of the settings": (tensor(torch.ones_like, "hparams"), "'hparams'"),
    "an escape as a name": (tensor(torch.ones_like, "\x1b[2J"), "x1b"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_forged_prompt_file_is_refused(
    honest: tuple[Card, dict[str, torch.Tensor]], tmp_path: Path, what: str
) -> None:
    change, fact = CHANGES[what]
    with pytest.raises(UsageError, match=re.escape(fact)):
        vipbench.load_model(written(tmp_path / "p.safetensors", honest, change)).predict(IMAGE)


def test_what_is_no_whole_file_is_refused_by_name(
    honest: tuple[Card, dict[str, torch.Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good = written(tmp_path / "good.safetensors", honest)
    assert vipbench.load_model(good).predict(IMAGE).tolist()[0] in ("dark", "bright")
    data, bad = good.read_bytes(), tmp_path / "bad.safetensors"
    for content in (b"", data[:-1], data[: len(data) // 2], (2**40).to_bytes(8, "little"),
                    b"\x80\x04\x95" + data, b"PK\x03\x04" + data):  # fmt: skip
        bad.write_bytes(content)
        with pytest.raises(UsageError, match=r"bad\.safetensors"):
            vipbench.load_model(bad)
    bad.unlink()
    begun = time.monotonic()
    for make in (os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")):
        make(bad)
        with pytest.raises(UsageError, match=r"bad\.safetensors"):
            vipbench.load_model(bad)
        bad.rmdir() if bad.is_dir() else bad.unlink()
    assert time.monotonic() - begun < 20
    monkeypatch.setattr(prompt_card, "MOST_BYTES", len(data) - 1)
    with pytest.raises(UsageError, match=f"{len(data) - 1:,} bytes"):
        vipbench.load_model(good)
