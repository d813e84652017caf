"""encode_text against open_clip's own pass over all 77 tokens."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, stack_module_state, vmap

from tests.backbones.clips import (
    full_length_features,
    random_backbone,
    random_clip,
    tiny_config,
)
from vipbench.api import NoTap, TextError, Texts
from vipbench.backbones.towers.clip import ClipBackbone, clip_wordpieces

BACKBONE = random_backbone()
PLAIN_GELU = random_backbone(quick_gelu=False, text_cfg={"width": 48, "heads": 3, "layers": 1})
WORDS = ("nevus", "melanoma", "blurry", "edges", "x-ray", "of", "the", "lung,", "asymmetric")


def close(ours: Tensor, theirs: Tensor) -> None:
    """Equal to 1e-5 of the largest value."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, theirs.abs().max().item())


phrases = st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join)


@st.composite
def prompted(draw: st.DrawFn) -> tuple[ClipBackbone, Texts, Tensor]:
    """Texts in any position and nesting, and a context of any of the allowed forms."""
    backbone = draw(st.sampled_from([BACKBONE, PLAIN_GELU]))
    frame = draw(st.sampled_from(["end", "middle", "front"]))
    pieces = {
        "end": lambda p: ("", f"{p}."),
        "middle": lambda p: ("", p, "."),
        "front": lambda p: (p, "."),
    }[frame]
    n_classes = draw(st.integers(1, 4))
    texts: Any = [pieces(draw(phrases)) for _ in range(n_classes)]
    forms = ["shared", "class", "image"]
    if draw(st.booleans()):
        texts = [[pieces(draw(phrases)) for _ in range(draw(st.integers(1, 3)))] for _ in texts]
        forms = ["shared", "nested class", "nested image", "nested image and class"]
    m, b = draw(st.integers(1, 16)), draw(st.integers(1, 3))
    lead = {
        "shared": (),
        "class": (n_classes,),
        "image": (b, 1),
        "nested class": (n_classes, 1),
        "nested image": (b, 1, 1),
        "nested image and class": (b, n_classes, 1),
    }[draw(st.sampled_from(forms))]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return backbone, texts, torch.randn(*lead, m, backbone.width, generator=generator) * 0.5


@settings(max_examples=30)
@given(prompted())
def test_features_and_gradients_equal_the_full_length_pass(
    case: tuple[ClipBackbone, Texts, Tensor],
) -> None:
    backbone, texts, context = case
    prompts = backbone.embed(texts)
    real = slice(None) if prompts.mask is None else prompts.mask
    ours, theirs = context.clone().requires_grad_(), context.clone().requires_grad_()
    features = backbone.encode_text(prompts, ours)[..., real, :]
    expected = full_length_features(backbone._model, prompts, theirs)[..., real, :]
    close(features, expected)
    features.square().sum().backward()
    expected.square().sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    close(ours.grad, theirs.grad)


@settings(max_examples=10)
@given(prompted(), st.integers(1, 3))
def test_vmap_and_grad_equal_a_loop(case: tuple[ClipBackbone, Texts, Tensor], n_cells: int) -> None:
    backbone, texts, context = case
    prompts = backbone.embed(texts)
    cells = torch.stack([context * (i + 1) for i in range(n_cells)])

    def loss(context: Tensor) -> Tensor:
        return backbone.encode_text(prompts, context).square().sum()

    stacked = vmap(grad(loss))(cells)
    looped = [
        torch.autograd.grad(loss(c := cell.requires_grad_()), c)[0] for cell in cells.unbind()
    ]
    close(stacked, torch.stack(looped))
    close(
        vmap(lambda c: backbone.encode_text(prompts, c))(cells),
        torch.stack([backbone.encode_text(prompts, c) for c in cells]),
    )
    # The other nesting, and a gradient that is the same for all cells.
    close(grad(lambda cs: vmap(loss)(cs).sum())(cells), torch.stack(looped))
    sums = vmap(grad(lambda c: backbone.encode_text(prompts, c).sum()))(cells)
    alone = [grad(lambda c: backbone.encode_text(prompts, c).sum())(c) for c in cells.unbind()]
    close(sums, torch.stack(alone))


def test_stacked_modules_train_as_alone() -> None:
    prompts = BACKBONE.embed([[("", "blurry edges."), ("", "dark.")], [("", "clear edges.")]])
    target = torch.randn(2, 2, 24, generator=torch.Generator().manual_seed(1))

    class Cell(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(seed)
            self.context = nn.Parameter(torch.randn(4, 32, generator=generator) * 0.02)

        def forward(self, target: Tensor) -> Tensor:
            return (BACKBONE.encode_text(prompts, self.context) - target).square().mean()

    cells = [Cell(seed) for seed in range(3)]
    params, buffers = stack_module_state(cells)

    def loss(params: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return functional_call(cells[0], (params, buffers), (target,))

    grads, losses = vmap(grad_and_value(loss))(params, buffers)
    for i, cell in enumerate(cells):
        alone = cell(target)
        alone.backward()
        close(losses[i], alone)
        close(grads["context"][i], cell.context.grad)


def test_second_loss_over_the_same_features() -> None:
    prompts = BACKBONE.embed([("", "nevus."), ("", "melanoma.")])
    context = torch.full((4, 32), 0.1, requires_grad=True)
    features = BACKBONE.encode_text(prompts, context)
    (first,) = torch.autograd.grad(features[0].sum(), context, retain_graph=True)
    (second,) = torch.autograd.grad(features[1].sum(), context)
    (both,) = torch.autograd.grad(BACKBONE.encode_text(prompts, context).sum(), context)
    close(first + second, both)


def test_gradient_per_cotangent() -> None:
    """Many gradients of one pass at once, as jacobians take them."""
    prompts = BACKBONE.embed(("", "nevus."))
    context = torch.full((2, 32), 0.1, requires_grad=True)
    features = BACKBONE.encode_text(prompts, context)
    (rows,) = torch.autograd.grad(features, context, torch.eye(24), is_grads_batched=True)
    for i in (0, 23):
        (row,) = torch.autograd.grad(BACKBONE.encode_text(prompts, context)[i], context)
        close(rows[i], row)


def test_second_derivative_is_refused() -> None:
    prompts = BACKBONE.embed(("", "nevus."))
    context = torch.full((2, 32), 0.1, requires_grad=True)
    (slope,) = torch.autograd.grad(
        BACKBONE.encode_text(prompts, context).square().sum(), context, create_graph=True
    )
    with pytest.raises(NotImplementedError, match="derivative"):
        slope.sum().backward()


@pytest.mark.parametrize("budget", [1, 200_000, 1_000_000])
def test_bounded_memory_changes_nothing(budget: int) -> None:
    texts = [[("", f"{a} {b}.") for b in WORDS[:4]] for a in WORDS]
    context = torch.randn(9, 1, 4, 32, generator=torch.Generator().manual_seed(0))
    results = []
    for bytes_ in (1 << 30, budget):
        backbone = random_backbone()
        backbone.memory_budget = bytes_
        prompts = backbone.embed(texts)
        cells = torch.stack([context, -context])

        def loss(context: Tensor, backbone: Any = backbone, prompts: Any = prompts) -> Tensor:
            return backbone.encode_text(prompts, context).square().sum()

        results.append((*vmap(grad_and_value(loss))(cells), backbone.encode_text(prompts)))
    for plenty, little in zip(*results, strict=True):
        close(little, plenty)


@pytest.mark.parametrize("backbone", [BACKBONE, PLAIN_GELU])
def test_frozen_texts_equal_open_clip(backbone: ClipBackbone) -> None:
    texts = ["a photo of a nevus.", "a photo of a melanoma, dermoscopy.", "", "Pneumonia"]
    expected = backbone._model.encode_text(open_clip.tokenize(texts))
    features = backbone.encode_text(backbone.embed(texts))
    close(features, expected)
    assert not features.requires_grad
    close(backbone.encode_text(backbone.embed(texts[1])), expected[1])


def test_many_frozen_texts() -> None:
    texts = [[f"{a} {b} {i}." for i in range(10)] for a in WORDS for b in WORDS]
    features = BACKBONE.encode_text(BACKBONE.embed(texts))
    assert features.shape == (81, 10, 24)
    for c, k in ((0, 0), (40, 7), (80, 9)):
        close(features[c, k], BACKBONE.encode_text(BACKBONE.embed(texts[c][k])))


def test_ragged_places_are_finite() -> None:
    prompts = BACKBONE.embed([[("", "a."), ("", "b c."), ("", "d.")], [("", "e.")]])
    features = BACKBONE.encode_text(prompts, torch.zeros(3, 32))
    assert prompts.mask is not None
    assert prompts.mask.tolist() == [[True, True, True], [True, False, False]]
    assert features.isfinite().all()
    assert (features.norm(dim=-1) > 0).all()


def test_no_context_leaves_the_gaps_empty() -> None:
    for pieces in (("", "blurry edges."), ("", "blurry", "edges."), ("blurry edges", ".")):
        prompts = BACKBONE.embed([pieces])
        plain = BACKBONE.encode_text(BACKBONE.embed(["blurry edges."]))
        close(BACKBONE.encode_text(prompts), plain)
        close(BACKBONE.encode_text(prompts, torch.zeros(0, 32)), plain)


@settings(max_examples=10)
@given(prompted())
def test_the_tapped_pass_agrees(case: tuple[ClipBackbone, Texts, Tensor]) -> None:
    backbone, texts, context = case
    prompts = backbone.embed(texts)
    ours, tapped = context.clone().requires_grad_(), context.clone().requires_grad_()
    first = backbone.encode_text(prompts, ours)
    second = backbone.encode_text(prompts, tapped, NoTap())
    close(first, second)
    first.square().sum().backward()
    second.square().sum().backward()
    assert ours.grad is not None
    assert tapped.grad is not None
    close(ours.grad, tapped.grad)


def test_tap_sees_every_block_and_projection_of_the_text() -> None:
    seen = []

    class Spy(NoTap):
        def tokens(self, tower: Any, layer: int, x: Tensor) -> Tensor:
            seen.append((tower, layer, "tokens", x.shape[-1]))
            return x

        def linear(self, tower: Any, layer: int, name: str, x: Tensor, y: Tensor) -> Tensor:
            seen.append((tower, layer, name, y.shape[-1]))
            return y

    BACKBONE.encode_text(BACKBONE.embed(["nevus."]), tap=Spy())
    steps = [("tokens", 32), ("q", 32), ("k", 32), ("v", 32), ("o", 32), ("fc1", 128), ("fc2", 32)]
    assert seen == [("text", layer, *step) for layer in range(3) for step in steps]


def test_deep_text_prompts_and_low_rank_updates_under_vmap() -> None:
    prompts = BACKBONE.embed([("", "nevus."), ("", "blurry edges.")])
    context = torch.full((2, 32), 0.1)

    class Deep(NoTap):
        def __init__(self, rows: Tensor, a: Tensor, b: Tensor) -> None:
            self.rows, self.a, self.b = rows, a, b

        def tokens(self, tower: Any, layer: int, x: Tensor) -> Tensor:
            if layer == 0:
                return x
            rows = self.rows.expand(*x.shape[:-2], 2, 32)
            return torch.cat([x[..., :1, :], rows, x[..., 3:, :]], -2)

        def linear(self, tower: Any, layer: int, name: str, x: Tensor, y: Tensor) -> Tensor:
            return y + x @ self.a @ self.b if name in "qkv" else y

    def loss(rows: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return BACKBONE.encode_text(prompts, context, Deep(rows, a, b)).square().sum()

    generator = torch.Generator().manual_seed(0)
    cells = [
        torch.randn(3, *shape, generator=generator) * 0.1 for shape in ((2, 32), (32, 2), (2, 32))
    ]
    stacked = vmap(grad(loss, argnums=(0, 1, 2)))(*cells)
    for i in range(3):
        alone = grad(loss, argnums=(0, 1, 2))(*(cell[i] for cell in cells))
        for ours, theirs in zip(stacked, alone, strict=True):
            close(ours[i], theirs)
            assert theirs.abs().max() > 0


@pytest.mark.parametrize("budget", [1 << 30, 1])
def test_training_in_half_precision_is_near(budget: int) -> None:
    backbone = random_backbone()
    backbone.memory_budget = budget
    prompts = backbone.embed([("", "nevus."), ("", "blurry edges.")])
    context = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)) * 0.1

    def loss(context: Tensor) -> Tensor:
        features = backbone.encode_text(prompts, context)
        assert features.dtype == torch.float32
        return features.square().sum()

    exact, features = grad(loss)(context), backbone.encode_text(prompts, context)
    backbone.training_precision = "bf16"
    rough = vmap(grad(loss))(context[None])[0]
    assert 0 < (rough - exact).norm() < 0.05 * exact.norm()
    # Without a gradient to be had, nothing changes.
    assert torch.equal(backbone.encode_text(prompts, context), features)


def test_under_autocast() -> None:
    prompts = BACKBONE.embed([("", "nevus."), ("", "blurry edges.")])
    context = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)) * 0.1

    def loss(context: Tensor) -> Tensor:
        return BACKBONE.encode_text(prompts, context).float().square().sum()

    exact = grad(loss)(context)
    with torch.autocast("cpu", torch.bfloat16):
        assert BACKBONE.encode_text(prompts, context).dtype == torch.bfloat16
        rough = vmap(grad(loss))(context[None])[0]
    assert 0 < (rough - exact).norm() < 0.05 * exact.norm()


def test_context_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\('', 'nevus\.'\)"):
        BACKBONE.encode_text(BACKBONE.embed(["nevus."]), torch.zeros(4, 32))
    prompts = BACKBONE.embed([("", "nevus."), ("", "blurry " * 70)])
    with pytest.raises(TextError, match=r"'blurry blurry.* 72 .* 6.* 77"):
        BACKBONE.encode_text(prompts, torch.zeros(6, 32))
    BACKBONE.encode_text(prompts, torch.zeros(5, 32))
    with pytest.raises(ValueError, match=r"shape \(4, 31\); expected \(\*L, M, 32\)"):
        BACKBONE.encode_text(prompts, torch.zeros(4, 31))
    with pytest.raises(ValueError, match=r"\(3, 4, 32\).*\(2,\)"):
        BACKBONE.encode_text(prompts, torch.zeros(3, 4, 32))


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float64, 1e-5), (torch.float16, 0.02), (torch.bfloat16, 0.1)]
)
def test_a_tower_whose_every_weight_has_another_type(dtype: torch.dtype, limit: float) -> None:
    config = tiny_config()
    towers = [
        ClipBackbone(model, name="random", config=config, wordpieces=clip_wordpieces())
        for model in (random_clip(config), random_clip(config).to(dtype))
    ]
    found = []
    for tower, kind in zip(towers, (torch.float32, dtype), strict=True):
        context = torch.linspace(-1, 1, 4 * tower.width).reshape(1, 4, -1).to(kind)
        context.requires_grad_()
        features = tower.encode_text(tower.embed([("", "a rash")]), context)
        assert features.dtype == kind
        [gradient] = torch.autograd.grad(features.sum(), [context])
        found.append((features.detach().double(), gradient.double()))
    for expected, value in zip(*found, strict=True):
        assert (value - expected).norm() < limit * expected.norm()


def test_weights_that_were_written_are_read_again() -> None:
    """Scaled copies of them are kept; they must follow what a weight is written to, and back."""
    backbone = random_backbone(quick_gelu=True, text_cfg={"width": 48, "heads": 3, "layers": 2})
    prompts = backbone.embed(["a rash", "a mole"])
    before = backbone.encode_text(prompts)
    weight = backbone._model.transformer.resblocks[0].mlp.c_fc.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1.5)
    assert not torch.allclose(backbone.encode_text(prompts), before, atol=1e-3)
    with torch.no_grad():
        weight.copy_(kept)
    assert torch.equal(backbone.encode_text(prompts), before)
