"""transformers: backbones equal the library's own forward, in texts, images and gradients."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.func import grad, vmap

from tests.backbones import hub_models
from tests.backbones.clips import pictures
from vipbench.api import Backbone, NoTap
from vipbench.plugins.registry import load_registry

TEXTS = [
    "a photo of a nevus.",
    "this is the melanoma with dark edges, and red",
    "lung",
]
SAVERS: dict[str, Callable[[Path], Any]] = {
    "clip": hub_models.save_clip,
    "clip-gelu": lambda f: hub_models.save_clip(f, act="gelu", layer_norm_eps=1e-3),
    "siglip": hub_models.save_siglip,
    "siglip2": lambda f: hub_models.save_siglip(f, two=True),
    "vit-bert": hub_models.save_dual,
    "clip-roberta": lambda f: hub_models.save_dual(f, vision="clip", text="roberta"),
}


class Case:
    """A checkpoint on disk: the library's model and tokenizer, and our backbone of it."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.model = SAVERS[kind](folder)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        made, _ = load_registry().backbone(f"transformers:{folder}")
        assert isinstance(made, Backbone)
        self.backbone: Backbone = made

    @torch.no_grad()
    def text_features(self, texts: list[str]) -> Tensor:
        if self.kind.startswith("siglip"):
            tokens = self.tokenizer(texts, padding="max_length", max_length=32, return_tensors="pt")
            # These models see the padding: no mask.
            found = self.model.get_text_features(input_ids=tokens.input_ids)
        else:
            tokens = self.tokenizer(texts, padding=True, return_tensors="pt")
            tokens.pop("token_type_ids", None)
            found = self.model.get_text_features(**tokens)
        return found.pooler_output

    @torch.no_grad()
    def image_features(self, pixels: Tensor) -> Tensor:
        if self.kind == "siglip2":
            patches, grid = self.backbone._images.tower.patches(pixels)
            mask = torch.ones(patches.shape[:2], dtype=torch.long)
            given = {
                "pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": grid
            }  # fmt: skip
            return self.model.get_image_features(**given).pooler_output
        return self.model.get_image_features(pixel_values=pixels).pooler_output

    @torch.no_grad()
    def feature_of(self, *pieces: str) -> Tensor:
        """The library's feature (D,) of a text whose pieces are tokenised each by itself."""
        words = self.backbone._wordpieces
        ids = [*words.start]
        for i, piece in enumerate(pieces):
            ids += words.encode(words.glue + piece if i else piece)
        ids += words.end
        if self.kind.startswith("siglip"):
            ids += [words.pad] * (32 - len(ids))
        return self.model.get_text_features(input_ids=torch.tensor([ids])).pooler_output[0]


@pytest.fixture(scope="module", params=SAVERS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp("hub") / request.param)


def close(ours: Tensor, theirs: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


def test_text_features_are_the_librarys(case: Case) -> None:
    backbone = case.backbone
    close(backbone.encode_text(backbone.embed(TEXTS)), case.text_features(TEXTS))
    for text in TEXTS:
        close(backbone.encode_text(backbone.embed(text)), case.text_features([text])[0])
    nested = backbone.encode_text(backbone.embed([TEXTS[:2], TEXTS[2:]]))
    close(nested[0], case.text_features(TEXTS[:2]))
    close(nested[1, 0], case.text_features(TEXTS[2:])[0])


def test_image_features_are_the_librarys(case: Case) -> None:
    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    theirs = case.image_features(pixels)
    close(case.backbone.encode_image(pixels), theirs)
    # The pass that taps look into is another one.
    close(case.backbone.encode_image(pixels, NoTap()), theirs)
    assert (case.backbone.image_size, case.backbone.dim) == (32, theirs.shape[1])
    assert (case.backbone.vision_width, case.backbone.vision_layers) == (48, 2)


def test_the_temperature_is_the_checkpoints(case: Case) -> None:
    expected = case.model.logit_scale.exp().item()
    assert case.backbone.logit_scale == pytest.approx(expected)


def test_context_of_words_gives_the_text_of_these_words(case: Case) -> None:
    """A context of the embeddings of real words is a text of these words."""
    backbone = case.backbone
    context = backbone.embed_words("photo of the")
    prompts = backbone.embed([("", "nevus"), ("", "dark lung edges")])
    expected = [case.feature_of("photo of the", text) for text in ("nevus", "dark lung edges")]
    close(backbone.encode_text(prompts, context), torch.stack(expected))
    close(backbone.encode_text(prompts, context, NoTap()), torch.stack(expected))
    front = backbone.encode_text(backbone.embed([("red nevus", "border")]), context)
    if case.backbone._wordpieces.glue == "":
        close(front[0], case.feature_of("red nevus", "photo of the", "border"))


def test_pieces_are_tokenised_as_within_a_text(case: Case) -> None:
    backbone = case.backbone
    whole, pieces = backbone.embed(["nevus border"]), backbone.embed([("nevus", "border")])
    assert torch.equal(whole.tokens, pieces.tokens)


def test_contexts_with_leading_dimensions_are_each_by_themselves(case: Case) -> None:
    backbone = case.backbone
    prompts = backbone.embed([[("", "nevus"), ("", "dark lung")], [("", "melanoma")]])
    generator = torch.Generator().manual_seed(0)
    per_class = torch.randn(2, 1, 3, 32, generator=generator)
    found = backbone.encode_text(prompts, per_class)
    assert found.shape == (2, 2, backbone.dim)
    for c, k, text in ((0, 0, "nevus"), (0, 1, "dark lung"), (1, 0, "melanoma")):
        close(found[c, k], backbone.encode_text(backbone.embed(("", text)), per_class[c, 0]))
    per_image = torch.randn(4, 1, 1, 3, 32, generator=generator)
    images = backbone.encode_text(prompts, per_image)
    assert images.shape == (4, 2, 2, backbone.dim)
    close(images[3], backbone.encode_text(prompts, per_image[3, 0, 0]))


def test_vmap_and_gradients_equal_a_loop_and_the_tapped_pass(case: Case) -> None:
    backbone = case.backbone
    prompts = backbone.embed([("", "nevus"), ("", "dark lung edges")])
    cells = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(0))

    def loss(context: Tensor, tap: Any = None) -> Tensor:
        return backbone.encode_text(prompts, context, tap).square().mean()

    stacked = vmap(grad(loss))(cells)
    close(stacked, torch.stack([grad(loss)(cell) for cell in cells]))
    close(stacked, torch.stack([grad(lambda c: loss(c, NoTap()))(cell) for cell in cells]))
    assert stacked.abs().max() > 1e-4


def test_little_memory_changes_nothing(case: Case) -> None:
    backbone = case.backbone
    prompts = backbone.embed([("", f"{a} {b}") for a in ("nevus", "lung") for b in ("x", "dark")])
    context = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))

    def loss(context: Tensor) -> Tensor:
        return backbone.encode_text(prompts, context).square().mean()

    plenty = grad(loss)(context), backbone.encode_text(prompts)
    backbone.memory_budget = 1
    try:
        little = vmap(grad(loss))(context[None])[0], backbone.encode_text(prompts)
    finally:
        backbone.memory_budget = 1 << 30
    for a, b in zip(plenty, little, strict=True):
        close(a, b)


def test_taps_reach_both_towers(case: Case) -> None:
    backbone = case.backbone
    seen: list[tuple[Any, ...]] = []

    class Deep(NoTap):
        def tokens(self, tower: Any, layer: int, x: Tensor) -> Tensor:
            seen.append((tower, layer, "tokens", x.shape[-1]))
            if tower == "vision":
                rows = torch.ones(*x.shape[:-2], 2, x.shape[-1]) * torch.linspace(-1, 1, 48)
                return torch.cat([x if layer == 0 else x[..., :-2, :], rows], -2)
            return x

        def linear(self, tower: Any, layer: int, name: str, x: Tensor, y: Tensor) -> Tensor:
            seen.append((tower, layer, name, y.shape[-1]))
            return y + 0.1 * x[..., : y.shape[-1]] if name == "v" else y

    pixels = torch.randn(2, 3, 32, 32)
    plain = backbone.encode_image(pixels)
    tapped = backbone.encode_image(pixels, Deep())
    assert tapped.shape == plain.shape
    assert not torch.allclose(plain, tapped, atol=1e-3)
    prompts = backbone.embed(["nevus"])
    assert not torch.allclose(
        backbone.encode_text(prompts), backbone.encode_text(prompts, tap=Deep()), atol=1e-3
    )
    for tower, layers, width, wide in (("vision", 2, 48, 100), ("text", 3, 32, 80)):
        steps = [("tokens", width), ("q", width), ("k", width), ("v", width), ("o", width),
                 ("fc1", wide), ("fc2", width)]  # fmt: skip
        asked = [entry for entry in seen if entry[0] == tower]
        assert asked == [(tower, layer, *step) for layer in range(layers) for step in steps]


CLASS_TEXTS = ["a photo of a Melanoma.", "the lung, x ray (Clark's Nevus)  with 12 mm", "nevus"]


@torch.no_grad()
def test_class_texts_and_any_images_equal_the_librarys(case: Case, tmp_path: Path) -> None:
    """From the file to the feature, without anything of ours in between."""
    backbone = case.backbone
    close(backbone.encode_text(backbone.embed(CLASS_TEXTS)), case.text_features(CLASS_TEXTS))
    processor = transformers.AutoImageProcessor.from_pretrained(case.folder, backend="pil")
    given = processor(images=pictures(), return_tensors="pt")
    theirs = case.model.get_image_features(**given).pooler_output
    pixels = torch.stack([backbone.preprocess(image) for image in pictures()])
    close(backbone.encode_image(pixels), theirs)
    close(backbone.encode_image(pixels, NoTap()), theirs)
    close(backbone.trainable_copy().eval()(pixels), theirs)
    again = pickle.loads(pickle.dumps(backbone.preprocess_alone()))
    assert torch.equal(again(pictures()[0]), pixels[0])


def test_trainable_copies(case: Case) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    before = case.backbone.encode_image(pixels)
    copy = case.backbone.trainable_copy().eval()
    close(copy(pixels), before)
    fresh = case.backbone.trainable_copy(pretrained=False).eval()
    assert fresh(pixels).shape == before.shape
    assert not torch.allclose(fresh(pixels), before, atol=1e-2)
    fresh(pixels).sum().backward()
    with torch.no_grad():
        for value in copy.parameters():
            value.add_(1.0)
    close(case.backbone.encode_image(pixels), before)


def test_fingerprint_follows_the_weights_not_the_folder(case: Case, tmp_path: Path) -> None:
    if case.kind not in ("clip", "vit-bert"):
        pytest.skip("one of each class is enough")
    SAVERS[case.kind](tmp_path / "again")
    again, _ = load_registry().backbone(f"transformers:{tmp_path / 'again'}")
    assert again.fingerprint == case.backbone.fingerprint
    assert again.name == case.backbone.name
    assert str(case.folder) not in again.name
