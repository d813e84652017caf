"""Models of the transformers library, taken apart into what a backbone needs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vipbench.api import Backbone, UnsupportedError
from vipbench.backbones._clip import ClipBackbone
from vipbench.backbones._dual import DualBackbone
from vipbench.backbones._images import Projected, side_of_timm, side_of_transformers
from vipbench.backbones._loading import build
from vipbench.backbones._texts import Wordpieces
from vipbench.backbones._textsides import BertSide, SiglipSide, TextSide, first_row

# Types of model that need no code of their own.
PAIRS = ("clip", "siglip", "siglip2", "vision-text-dual-encoder")


def build_pair(
    model: Any,
    kind: str,
    *,
    wordpieces: Wordpieces,
    tokens: int | None,
    preprocess: Mapping[str, Any],
    name: str,
    licence: str,
) -> Backbone:
    """A backbone of `model`. tokens: the longest text its tokenizer makes, None for no limit.

    Raises UnsupportedError for towers that are not known, naming them.
    """
    common: dict[str, Any] = {
        "name": name,
        "licence": licence,
        "wordpieces": wordpieces,
        "preprocess": preprocess,
    }
    if kind == "clip":
        clip, config = as_open_clip(model)
        return ClipBackbone(clip, config=config, **common)
    texts: TextSide
    if kind in ("siglip", "siglip2"):
        images = side_of_transformers(
            model.vision_model, None, partial(_fresh, model.vision_model, None)
        )
        texts = SiglipSide(model.text_model, wordpieces.pad)
        dim = int(model.config.vision_config.hidden_size)
    elif kind == "vision-text-dual-encoder":
        vision, projection = model.vision_model, model.visual_projection
        images = side_of_transformers(vision, projection, partial(_fresh, vision, projection))
        texts = BertSide(model.text_model, partial(_pooler, model), model.text_projection, tokens)
        dim = int(projection.out_features)
    else:
        images, texts, dim = _own_code(model, tokens)
    return DualBackbone(
        model,
        images=images,
        texts=texts,
        dim=dim,
        logit_scale=model.logit_scale.exp().item(),
        facts=model.config.to_diff_dict(),
        **common,
    )


def _pooler(model: Any, x: Tensor, lengths: Tensor) -> Tensor:
    """BERT's own pooler of the start token's row."""
    pooler = getattr(model, "text_model", model).pooler
    if pooler is None:
        raise UnsupportedError("its text tower has no pooler")
    pooled: Tensor = pooler.activation(pooler.dense(first_row(x, lengths)))
    return pooled


def _fresh(vision: Any, projection: nn.Linear | None) -> nn.Module:
    """The image tower with new weights."""
    new = type(vision)(vision.config)
    if projection is None:
        return side_of_transformers(new, None, nn.Identity).tower
    linear = nn.Linear(projection.in_features, projection.out_features, bias=False)
    return Projected(new, linear)


def _own_code(model: Any, tokens: int | None) -> tuple[Any, TextSide, int]:
    """Models that bring their code: a timm tower `visual` with a `visual_head`, a BERT `text`
    (the form of KEEP)."""
    wanted = ("visual", "visual_head", "text", "logit_scale")
    absent = [
        part for part in wanted if not isinstance(getattr(model, part, None), nn.Module | Tensor)
    ]
    if absent:
        raise UnsupportedError(
            f"its code builds a {type(model).__name__} without {', '.join(absent)}, which is not "
            "known how to take apart; bring it as a plugin (docs/plugins.md)"
        )
    size = model.visual.patch_embed.img_size[0]
    tower = nn.Sequential(model.visual, model.visual_head)

    def fresh() -> nn.Module:
        new: Any = type(model)(model.config)
        return nn.Sequential(new.visual, new.visual_head)

    images = side_of_timm(model.visual, model.visual_head, int(size), tower, fresh)
    texts = BertSide(model.text, partial(_pooler, model.text), nn.Identity(), tokens)
    return images, texts, int(texts.words.embedding_dim)


def as_open_clip(model: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A CLIP of the transformers library as the same CLIP of open_clip's classes, and its
    configuration. Raises UnsupportedError where open_clip has no such CLIP."""
    c = model.config
    acts = {c.text_config.hidden_act, c.vision_config.hidden_act}
    if len(acts) > 1 or not acts <= {"quick_gelu", "gelu"}:
        raise UnsupportedError(f"a CLIP with the activations {', '.join(sorted(acts))}")
    config = {
        "embed_dim": c.projection_dim,
        "quick_gelu": acts == {"quick_gelu"},
        "vision_cfg": {
            **_sizes(c.vision_config),
            "image_size": c.vision_config.image_size,
            "patch_size": c.vision_config.patch_size,
            "head_width": c.vision_config.hidden_size // c.vision_config.num_attention_heads,
        },
        "text_cfg": {
            **_sizes(c.text_config),
            "heads": c.text_config.num_attention_heads,
            "context_length": c.text_config.max_position_embeddings,
            "vocab_size": c.text_config.vocab_size,
        },
    }
    clip: Any = build(config)
    text, vision = model.text_model, model.vision_model
    with torch.no_grad():
        for ours, theirs in (
            (clip.token_embedding.weight, text.embeddings.token_embedding.weight),
            (clip.positional_embedding, text.embeddings.position_embedding.weight),
            (clip.text_projection, model.text_projection.weight.T),
            (clip.logit_scale, model.logit_scale),
            (clip.visual.class_embedding, vision.embeddings.class_embedding),
            (clip.visual.positional_embedding, vision.embeddings.position_embedding.weight),
            (clip.visual.conv1.weight, vision.embeddings.patch_embedding.weight),
            (clip.visual.proj, model.visual_projection.weight.T),
        ):
            ours.copy_(theirs)
        _copy(clip.ln_final, text.final_layer_norm)
        _copy(clip.visual.ln_pre, vision.pre_layrnorm)
        _copy(clip.visual.ln_post, vision.post_layernorm)
        _copy_blocks(clip.transformer.resblocks, text.encoder.layers)
        _copy_blocks(clip.visual.transformer.resblocks, vision.encoder.layers)
    return clip, config


def _sizes(config: Any) -> dict[str, Any]:
    return {
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "mlp_ratio": config.intermediate_size / config.hidden_size,
        "norm_kwargs": {"eps": config.layer_norm_eps},
    }


def _copy(ours: Any, theirs: Any) -> None:
    ours.weight.copy_(theirs.weight)
    ours.bias.copy_(theirs.bias)


def _copy_blocks(ours: Any, theirs: Any) -> None:
    for block, layer in zip(ours, theirs, strict=True):
        attention = layer.self_attn
        packed = [attention.q_proj, attention.k_proj, attention.v_proj]
        block.attn.in_proj_weight.copy_(torch.cat([p.weight for p in packed]))
        block.attn.in_proj_bias.copy_(torch.cat([p.bias for p in packed]))
        _copy(block.attn.out_proj, attention.out_proj)
        _copy(block.ln_1, layer.layer_norm1)
        _copy(block.ln_2, layer.layer_norm2)
        _copy(block.mlp.c_fc, layer.mlp.fc1)
        _copy(block.mlp.c_proj, layer.mlp.fc2)
