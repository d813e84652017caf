"""The towers against the recorded figures of the official programs, before any training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.golden_util import DEVICE, golden_backbone, limit, load_golden
from vipbench.api import NoTap, Prompts
from vipbench.backbones.towers.clip import ClipBackbone


def tensor(golden: dict[str, Any], name: str) -> Tensor:
    return torch.from_numpy(golden[name]).to(DEVICE)


def names(golden: dict[str, Any]) -> list[str]:
    return [name.replace("_", " ") for name in golden["meta"]["classnames"]]


def logits(backbone: ClipBackbone, images: Tensor, texts: Tensor) -> Tensor:
    """images (B,D), texts (C,D) or (B,C,D)."""
    images, texts = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
    return backbone.logit_scale * (texts @ images.unsqueeze(-1)).squeeze(-1)


def assert_tokens(prompts: Prompts, golden: dict[str, Any], m: int, words: int = 0) -> None:
    """The recorded 77-token rows, without the `m` places of the context in them.

    words: how many of those places come after the class name's first tokens (middle position).
    """
    recorded = golden["token_ids" if "token_ids" in golden else "prompt_token_ids"]
    flat = prompts.tokens.flatten(0, -2)
    lengths = prompts.lengths.flatten().tolist()
    for ours, length, theirs in zip(flat.tolist(), lengths, recorded.tolist(), strict=True):
        # The recorded rows hold the context's places right behind the start token.
        assert ours[:length] == [theirs[0], *theirs[1 + m : length + m]]
        assert not any(theirs[length + m :])


def test_coop_end(shared: Path) -> None:
    golden = load_golden(shared / "golden" / "coop_end.npz")
    backbone = golden_backbone(golden)
    context = tensor(golden, "init/prompt_learner.ctx")
    prompts = backbone.embed([("", f"{name}.") for name in names(golden)])
    assert_tokens(prompts, golden, len(context))
    texts = backbone.encode_text(prompts, context)
    ours = logits(backbone, tensor(golden, "image_features"), texts)
    assert (ours - tensor(golden, "logits_init")).abs().max() < limit(1e-5)


def test_coop_class_specific_in_the_middle(shared: Path) -> None:
    golden = load_golden(shared / "golden" / "coop_middle_csc.npz")
    backbone = golden_backbone(golden)
    context = tensor(golden, "init/prompt_learner.ctx")
    prompts = backbone.embed([("", name, ".") for name in names(golden)])
    assert_tokens(prompts, golden, context.shape[1])
    for stage in ("init", "final"):
        texts = backbone.encode_text(prompts, tensor(golden, f"{stage}/prompt_learner.ctx"))
        ours = logits(backbone, tensor(golden, "image_features"), texts)
        assert (ours - tensor(golden, f"logits_{stage}")).abs().max() < limit(1e-5)


def test_cocoop(shared: Path) -> None:
    golden = load_golden(shared / "golden" / "cocoop_init.npz")
    backbone = golden_backbone(golden)
    prompts = backbone.embed([("", f"{name}.") for name in names(golden)])
    words = backbone.embed_words("a photo of a")
    assert torch.equal(words, tensor(golden, "init/prompt_learner.ctx"))
    assert_tokens(prompts, golden, len(words))
    images = tensor(golden, "image_features")
    for stage in ("init", "final"):
        net = {
            name: tensor(golden, f"{stage}/prompt_learner.meta_net.{name}")
            for name in ("linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias")
        }
        hidden = F.linear(F.normalize(images, dim=-1), net["linear1.weight"], net["linear1.bias"])
        shift = F.linear(hidden.relu(), net["linear2.weight"], net["linear2.bias"])
        context = tensor(golden, f"{stage}/prompt_learner.ctx") + shift[:, None]  # (B,M,W)
        texts = backbone.encode_text(prompts, context[:, None])  # (B,C,D)
        ours = logits(backbone, images, texts)
        assert (ours - tensor(golden, f"logits_{stage}")).abs().max() < limit(1e-5)


def test_vip(shared: Path) -> None:
    golden = load_golden(shared / "golden" / "vip_skin_end.npz")
    backbone = golden_backbone(golden)
    symptoms = [golden["meta"]["descriptions"][name] for name in golden["meta"]["classnames"]]
    prompts = backbone.embed([[("", f"{text}.") for text in texts] for texts in symptoms])
    assert_tokens(prompts, golden, 4)
    for stage in ("init", "final"):
        query, w_q, w_k = (
            tensor(golden, f"{stage}/{name}")
            for name in ("learnable_token", "attn.q_proj.weight", "attn.k_proj.weight")
        )
        texts = backbone.encode_text(prompts, tensor(golden, f"{stage}/prompt_learner.ctx"))
        scores = torch.einsum("cd,ckd->ck", query @ w_q.T, texts @ w_k.T) * backbone.dim**-0.5
        merged = query + torch.einsum("ck,ckd->cd", scores.softmax(-1), texts)
        ours = logits(backbone, tensor(golden, "image_features"), merged)
        assert (ours - tensor(golden, f"logits_{stage}")).abs().max() < limit(1e-5)


class Recorded(NoTap):
    """The deep prompts of a recorded run: rows that stand for text rows 1..M and for the last
    rows of an image."""

    def __init__(self, text: list[Tensor | None], vision: list[Tensor | None]) -> None:
        self.rows = {"text": text, "vision": vision}

    def tokens(self, tower: Any, layer: int, x: Tensor) -> Tensor:
        rows = self.rows[tower][layer]
        if rows is None:
            return x
        rows = rows.expand(*x.shape[:-2], *rows.shape)
        if tower == "text":
            return torch.cat([x[..., :1, :], rows, x[..., 1 + rows.shape[-2] :, :]], -2)
        own = x if layer == 0 else x[..., : -rows.shape[-2], :]
        return torch.cat([own, rows], -2)


@pytest.mark.parametrize("stage", ["init", "final"])
@pytest.mark.parametrize("file", ["maple_a", "ivlp_a", "vptdeep_a", "promptsrc_a"])
def test_prompts_in_both_towers(shared: Path, file: str, stage: str) -> None:
    golden = load_golden(shared / "golden" / f"{file}.npz")
    backbone = golden_backbone(golden)
    block = "transformer.resblocks.1.VPT_shallow"

    def get(name: str) -> Tensor:
        return tensor(golden, f"{stage}/{name}")

    context = None
    if file == "maple_a":
        context = get("prompt_learner.ctx")
        deep = get("prompt_learner.compound_prompts_text.0")
        shallow = F.linear(
            context, get("prompt_learner.proj.weight"), get("prompt_learner.proj.bias")
        )
        projection = "prompt_learner.compound_prompt_projections.0"
        vision = F.linear(deep, get(f"{projection}.weight"), get(f"{projection}.bias"))
        tap = Recorded([None, deep], [shallow, vision])
        # Two of the four words "a photo of a" became context; the others stayed in the text.
        texts: list[Any] = [("", f"of a {name}.") for name in names(golden)]
    else:
        visual = [get("image_encoder.VPT"), get(f"image_encoder.{block}")]
        if file == "vptdeep_a":
            tap = Recorded([None, None], visual)
            texts = [f"a photo of a {name}." for name in names(golden)]
        else:
            context = get("prompt_learner.ctx")
            tap = Recorded([None, get(f"text_encoder.{block}")], visual)
            texts = [("", f"{name}.") for name in names(golden)]
    prompts = backbone.embed(texts)
    assert_tokens(prompts, golden, 0 if context is None else len(context))
    images = (tensor(golden, "test_images_u8").float() - 128) / 64
    ours = logits(
        backbone, backbone.encode_image(images, tap), backbone.encode_text(prompts, context, tap)
    )
    assert (ours - tensor(golden, f"logits_{stage}")).abs().max() < limit(5e-5)


def test_low_rank_updates_in_both_towers(shared: Path) -> None:
    golden = load_golden(shared / "golden" / "cliplora_a.npz")
    backbone = golden_backbone(golden)
    hyper = golden["meta"]["hyper"]

    class LoRA(NoTap):
        def linear(self, tower: Any, layer: int, name: str, x: Tensor, y: Tensor) -> Tensor:
            if name not in hyper["params"]:
                return y
            where = "visual." if tower == "vision" else ""
            key = f"final/{where}transformer.resblocks.{layer}.attn.{name}_proj.w_lora_"
            a, b = tensor(golden, f"{key}A"), tensor(golden, f"{key}B")
            return y + hyper["r"] ** -0.5 * hyper["alpha"] * (x @ a.T @ b.T)

    images = (tensor(golden, "test_images_u8").float() - 128) / 64
    prompts = backbone.embed([f"a photo of a {name}." for name in names(golden)])
    for stage, tap in (("init", None), ("final", LoRA())):
        image_features = backbone.encode_image(images, tap)
        texts = backbone.encode_text(prompts, tap=tap)
        ours = logits(backbone, image_features, texts) / backbone.logit_scale
        recorded = tensor(golden, f"logits_{stage}") / hyper["logit_scale"]
        assert (ours - recorded).abs().max() < limit(1e-6)
