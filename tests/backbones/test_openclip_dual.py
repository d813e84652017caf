"""open_clip models with text towers that are not CLIP's: equal to open_clip's own forward."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors.torch
import torch
import transformers
from torch import Tensor
from torch.func import grad, vmap

from tests.backbones import hub_models
from tests.backbones.clips import pictures
from vipbench.api import Backbone, NoTap
from vipbench.backbones.loading.openclip import build
from vipbench.errors import UsageError
from vipbench.plugins.registry import load_registry

TEXTS = ["a photo of a nevus.", "this is the melanoma with dark edges, and red", "lung"]
VIT = {"image_size": 32, "patch_size": 8, "width": 48, "head_width": 16, "layers": 2}
# A vision transformer of timm; its name must be one that timm knows.
TIMM = {
    "timm_model_name": "vit_tiny_patch16_224",
    "timm_model_pretrained": False,
    "timm_pool": "",
    "timm_proj": "linear",
    "image_size": 224,
}
OWN_TEXT = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 3}


def bert_text(pooler: str, proj: str) -> dict[str, Any]:
    return {
        "hf_model_name": "bert", "hf_tokenizer_name": "an-org/never-asked-for",
        "hf_proj_type": proj, "hf_pooler_type": pooler, "context_length": 24,
    }  # fmt: skip


CONFIGS: dict[str, dict[str, Any]] = {
    # The form of BiomedCLIP.
    "bert-timm": {
        "embed_dim": 24, "vision_cfg": TIMM,
        "text_cfg": bert_text("cls_last_hidden_state_pooler", "mlp"),
    },
    "bert-mean": {
        "embed_dim": 24, "vision_cfg": VIT, "text_cfg": bert_text("mean_pooler", "linear"),
        "quick_gelu": True,
    },
    "bert-pooler": {
        "embed_dim": 24, "vision_cfg": VIT, "text_cfg": bert_text("cls_pooler", "linear")
    },
    "coca": {
        "embed_dim": 24, "custom_text": True,
        "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 4,
                       "output_tokens": True},
        "text_cfg": {**OWN_TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**OWN_TEXT, "attn_pooler_heads": 4},
    },
    # The form of SigLIP in open_clip, with a context length and tokenizer of its own.
    "siglip": {
        "embed_dim": 192, "custom_text": True, "init_logit_bias": -10,
        "vision_cfg": {**TIMM, "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": {**OWN_TEXT, "vocab_size": 64, "no_causal_mask": True, "proj_bias": True,
                     "pool_type": "last", "hf_tokenizer_name": "an-org/never-asked-for",
                     "tokenizer_kwargs": {"clean": "canonicalize"}},
    },
}  # fmt: skip


STATED = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}


def save(kind: str, folder: Path) -> Any:
    """A repository of the Hub's form in `folder`; the open_clip model in it."""
    config = CONFIGS[kind]
    if "hf_model_name" in config["text_cfg"]:
        transformers.BertConfig(
            hidden_size=32, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
            vocab_size=64, max_position_embeddings=40, pad_token_id=0,
        ).save_pretrained(folder / "bert")  # fmt: skip
        hub_models.save_words(folder, start="[CLS]", end="[SEP]", pad="[PAD]", length=24)
    elif kind == "siglip":
        hub_models.save_words(folder, end="</s>", pad="<pad>", length=20)
    named = str(folder / "bert") if "hf_model_name" in config["text_cfg"] else None
    model = hub_models.randomise(build(config, named))
    folder.mkdir(exist_ok=True)
    weights = {k: v.contiguous().clone() for k, v in model.state_dict().items()}
    safetensors.torch.save_file(weights, folder / "open_clip_model.safetensors")
    stated = {"model_cfg": config, "preprocess_cfg": STATED}
    (folder / "open_clip_config.json").write_text(json.dumps(stated))
    return model


class Case:
    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.model = save(kind, folder)
        made, _ = load_registry().backbone(f"openclip:local-dir:{folder}")
        assert isinstance(made, Backbone)
        self.backbone: Backbone = made
        text = CONFIGS[kind]["text_cfg"]
        length = text["context_length"]
        self.tokenize: Callable[..., Tensor] = open_clip.tokenizer.SimpleTokenizer(
            context_length=length
        )
        if "hf_tokenizer_name" in text:
            options = text.get("tokenizer_kwargs", {})
            self.tokenize = open_clip.tokenizer.HFTokenizer(
                str(folder), context_length=length, **options
            )

    @torch.no_grad()
    def text_features(self, texts: list[str]) -> Tensor:
        return self.model.encode_text(self.tokenize(texts), normalize=False)

    def pixels(self, n: int = 2) -> Tensor:
        side = self.backbone.image_size
        return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=CONFIGS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp("dual") / request.param)


def close(ours: Tensor, theirs: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=1e-5)


def test_text_features_are_open_clips(case: Case) -> None:
    backbone = case.backbone
    close(backbone.encode_text(backbone.embed(TEXTS)), case.text_features(TEXTS))
    close(backbone.encode_text(backbone.embed(TEXTS), tap=NoTap()), case.text_features(TEXTS))
    for text in TEXTS:
        close(backbone.encode_text(backbone.embed(text)), case.text_features([text])[0])
    # As long as the tower takes, where CoCa's class row stands right behind the text.
    room = backbone.context_length - len(backbone._wordpieces.start + backbone._wordpieces.end)
    full = " ".join(["nevus"] * (room // (len(backbone._wordpieces.encode("nevus")))))
    close(backbone.encode_text(backbone.embed([full])), case.text_features([full]))


@torch.no_grad()
def test_image_features_are_open_clips(case: Case) -> None:
    pixels = case.pixels()
    features = case.model.visual(pixels)
    theirs = features[0] if isinstance(features, tuple) else features
    close(case.backbone.encode_image(pixels), theirs)
    close(case.backbone.encode_image(pixels, NoTap()), theirs)
    assert case.backbone.vision_layers == (12 if "timm_model_name" in
                                           CONFIGS[case.kind]["vision_cfg"] else 2)  # fmt: skip


@torch.no_grad()
def test_any_images_equal_open_clips(case: Case) -> None:
    side = case.backbone.image_size
    settings = open_clip.transform.PreprocessCfg(size=side, **STATED)
    transform = open_clip.transform.image_transform_v2(settings, is_train=False)
    pixels = torch.stack([case.backbone.preprocess(image) for image in pictures()])
    assert torch.equal(pixels, torch.stack([transform(image) for image in pictures()]))
    features = case.model.visual(pixels)
    theirs = features[0] if isinstance(features, tuple) else features
    # The pass of its own is exact to the last bits of fp32 alone: 1.34e-5 with torch 2.10 (siglip).
    close(case.backbone.encode_image(pixels), theirs, atol=2e-5)


def test_context_of_words_gives_the_text_of_these_words(case: Case) -> None:
    backbone = case.backbone
    context = backbone.embed_words("photo of the")
    prompts = backbone.embed([("", "nevus"), ("", "dark lung edges")])
    texts = ["photo of the nevus", "photo of the dark lung edges"]
    close(backbone.encode_text(prompts, context), case.text_features(texts))
    close(backbone.encode_text(prompts, context, NoTap()), case.text_features(texts))


def test_vmap_and_gradients_equal_a_loop(case: Case) -> None:
    backbone = case.backbone
    prompts = backbone.embed([("", "nevus"), ("", "dark lung edges")])
    cells = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(0))

    def loss(context: Tensor, tap: Any = None) -> Tensor:
        return backbone.encode_text(prompts, context, tap).square().mean()

    stacked = vmap(grad(loss))(cells)
    close(stacked, torch.stack([grad(loss)(cell) for cell in cells]), atol=1e-4)
    tapped = torch.stack([grad(lambda c: loss(c, NoTap()))(cell) for cell in cells])
    close(stacked, tapped, atol=1e-4)


def test_gradients_of_vision_prompts(case: Case) -> None:
    backbone = case.backbone
    width = backbone.vision_width
    assert width is not None

    def loss(rows: Tensor) -> Tensor:
        class Prompt(NoTap):
            def tokens(self, tower: Any, layer: int, x: Tensor) -> Tensor:
                return torch.cat([x, rows.expand(len(x), -1, -1)], 1) if layer == 0 else x

        return backbone.encode_image(case.pixels(), Prompt()).square().mean()

    rows = torch.randn(2, width, generator=torch.Generator().manual_seed(0))
    slope = grad(loss)(rows)
    step = torch.randn(2, width, generator=torch.Generator().manual_seed(1)) * 1e-2
    expected = (loss(rows + step) - loss(rows - step)) / 2
    assert (slope * step).sum().item() == pytest.approx(expected.item(), rel=0.05, abs=1e-5)
    assert slope.abs().max() > 0


def test_trainable_copies(case: Case) -> None:
    pixels = case.pixels()
    before = case.backbone.encode_image(pixels)
    copy = case.backbone.trainable_copy().eval()
    copied = copy(pixels)
    close(copied[0] if isinstance(copied, tuple) else copied, before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = case.backbone.trainable_copy(pretrained=False).eval()
    made = fresh(pixels)
    made = made[0] if isinstance(made, tuple) else made
    assert made.shape == before.shape
    assert not torch.allclose(made, before, atol=1e-2)


def test_files_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def refused(pattern: str) -> None:
        with pytest.raises(UsageError, match=pattern):
            load_registry().backbone(f"openclip:local-dir:{tmp_path}")

    refused(r"has no open_clip_config\.json; expected open_clip_config\.json and")
    save("bert-mean", tmp_path)
    (tmp_path / "bert" / "config.json").unlink()
    refused(r"config\.json of 'bert' is not in the .* cache.*`hf download bert config\.json`")
    (tmp_path / "open_clip_model.safetensors").unlink()
    refused(r"neither open_clip_model\.safetensors nor")


def test_what_else_a_folder_may_hold_is_refused(tmp_path: Path) -> None:
    def refused(pattern: str) -> None:
        with pytest.raises(UsageError, match=pattern):
            load_registry().backbone(f"openclip:local-dir:{tmp_path}")

    save("siglip", tmp_path)
    path = tmp_path / "open_clip_config.json"
    stated = json.loads(path.read_text())
    stated["model_cfg"]["text_cfg"]["tokenizer_mode"] = "clips"
    path.write_text(json.dumps(stated))
    refused("mode 'clips', which is not supported")
    (tmp_path / "adapter_config.json").write_text("{}")
    refused(r"holds an adapter \(adapter_config\.json\), which openclip: does not apply")


def test_coca_with_the_corrected_mask() -> None:
    """The mask of the published checkpoints is one place off; open_clip can build the right one."""
    from vipbench.backbones.towers.bidirectional import CocaSide

    torch.manual_seed(0)
    for correct in (False, True):
        text = hub_models.randomise(
            open_clip.transformer.TextTransformer(
                **{"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 4},
                **{"layers": 2, "output_dim": 24, "embed_cls": True},
                correct_cls_mask=correct,
            )
        )
        side = CocaSide(text)
        tokens = torch.tensor([[5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0], [*range(1, 13)]])
        lengths = torch.tensor([4, 12])
        ours = side.run(side.words(tokens), lengths, None)
        close(ours, text(tokens))
        close(side.run(side.words(tokens[:1, :4]), lengths[:1], None), text(tokens[:1]))
