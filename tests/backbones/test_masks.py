"""Masks of attention: what fused kernels on CUDA take as it is, and the same values as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap
from torch.overrides import TorchFunctionMode

from tests.backbones.clips import random_backbone
from tests.backbones.test_openclip_dual import Case
from vipbench.api import Backbone, NoTap
from vipbench.backbones.towers.masks import ALIGNED, additive, causal, repeated


def aligned(mask: Tensor) -> bool:
    return mask.stride(-1) == 1 and all(stride % ALIGNED == 0 for stride in mask.stride()[:-1])


@pytest.mark.parametrize("rows", [1, 5, 8, 21])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_is_what_torch_makes_of_booleans(rows: int, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(rows)
    seen = torch.rand(3, rows, rows, generator=rng) > 0.5
    seen |= torch.eye(rows, dtype=torch.bool)
    mask = additive(seen, dtype)
    assert mask.dtype == dtype
    assert aligned(mask)
    assert torch.equal(mask == 0, seen)
    assert torch.equal(mask.isneginf(), ~seen)
    q, k, v = torch.randn(3, 3, 2, rows, 4, generator=rng).to(dtype)
    ours = F.scaled_dot_product_attention(q, k, v, mask.unsqueeze(1))
    assert torch.equal(ours, F.scaled_dot_product_attention(q, k, v, seen.unsqueeze(1)))


def test_repetition_keeps_the_rows_in_place() -> None:
    mask = additive(torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0)) > 0.5,
                    torch.float32)  # fmt: skip
    many = repeated(mask, 3)
    assert aligned(many)
    assert torch.equal(many, mask.repeat(3, 1, 1))
    assert repeated(mask, 1) is mask
    assert repeated(mask[:1], 7).shape == (1, 3, 5)


def test_causal_masks_are_made_once() -> None:
    like = torch.zeros(2, dtype=torch.bfloat16)
    assert causal(9, like) is causal(9, like + 1)
    assert torch.equal(causal(9, like) == 0, torch.ones(9, 9, dtype=torch.bool).tril())
    assert causal(9, like.float()).dtype == torch.float32


class Attentions(TorchFunctionMode):
    """Collects what attention is asked with: the queries' type and the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[torch.dtype, Tensor | None]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.found.append((args[0].dtype, (kwargs or {}).get("attn_mask")))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["clip", "bert-mean", "coca"])
def test_attention_is_given_masks_that_kernels_take(
    kind: str, precision: Any, tmp_path: Path
) -> None:
    tower: Backbone = random_backbone() if kind == "clip" else Case(kind, tmp_path / "m").backbone
    tower.training_precision = precision
    prompts = tower.embed([("", "a nevus."), ("", "the lung"), ("", "melanoma with dark edges")])
    contexts = torch.randn(2, 3, tower.width, generator=torch.Generator().manual_seed(0)) * 0.1

    with Attentions() as some:
        vmap(grad(lambda c: tower.encode_text(prompts, c).sum()))(contexts)
        tower.encode_text(prompts)
        tower.encode_text(prompts, contexts[0], NoTap())
    assert some.found
    for dtype, mask in some.found:
        assert mask is not None
        assert mask.dtype == dtype
        assert aligned(mask)
