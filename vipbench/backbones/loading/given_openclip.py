"""What a loaded model, transform and tokenizer of open_clip are, read off the objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import nn

from vipbench.backbones.loading.openclip import bert_folder, build
from vipbench.errors import UsageError

TEXT_TOWER = "text_tower"
_POOLERS = {
    "MeanPooler": "mean_pooler",
    "MaxPooler": "max_pooler",
    "ClsPooler": "cls_pooler",
    "ClsLastHiddenStatePooler": "cls_last_hidden_state_pooler",
}
_CLEANERS = ("lower", "whitespace", "canonicalize")
# Steps that change the type alone; what they do to values is compared.
_PLAIN = {"ToTensor", "MaybeToTensor", "MaybeConvertMode", "PILToTensor", "ToImage", "ToDtype"}
_PLAIN |= {"ConvertImageDtype", "_convert_to_rgb", "_convert_image_to_rgb", "convert_image_to_rgb"}


def preprocess_of(transform: Any, where: str) -> dict[str, Any]:
    """The `preprocess_cfg` of an evaluation transform. Raises UsageError naming a step that is not
    known."""
    steps = getattr(transform, "transforms", None)
    if steps is None:
        raise UsageError(
            f"{where}: its preprocess is a {type(transform).__name__}; expected the evaluation "
            "transform of open_clip, a torchvision Compose"
        )
    found: dict[str, Any] = {}
    for step in steps:
        name = getattr(step, "__name__", type(step).__name__)
        if name in ("Resize", "ResizeKeepRatio", "ResizeMaxSize"):
            found["interpolation"] = getattr(step.interpolation, "value", step.interpolation)
            square = name == "Resize" and isinstance(step.size, list | tuple) and len(step.size) > 1
            longest = name != "Resize"
            found["resize_mode"] = "longest" if longest else "squash" if square else "shortest"
        elif name in ("CenterCrop", "CenterCropOrPad"):
            if hasattr(step, "fill"):
                found["fill_color"] = step.fill
        elif name == "Normalize":
            found["mean"], found["std"] = (list(map(float, v)) for v in (step.mean, step.std))
        elif name not in _PLAIN:
            raise UsageError(
                f"{where}: its preprocess has the step {name}, which is not known; expected the "
                "evaluation transform of open_clip: Resize, CenterCrop, ToTensor, Normalize"
            )
    missing = [n for n in ("Normalize",) if "mean" not in found]
    if missing or found.get("interpolation") not in ("bicubic", "bilinear"):
        raise UsageError(
            f"{where}: its preprocess lacks {' and '.join(missing) or 'a resize to the side'}, or "
            f"resizes in another way than bicubic or bilinear ({found.get('interpolation')})"
        )
    return found


def save_tokenizer(tokenizer: Any, folder: Path, where: str) -> dict[str, Any]:
    """Of `text_cfg` what names the tokenizer; its files go into `folder`. Raises UsageError."""
    clean = getattr(tokenizer, "clean_fn", None)
    cleaners = {open_clip.tokenizer.get_clean_fn(name): name for name in _CLEANERS}
    if clean not in cleaners or getattr(tokenizer, "tokenizer_mode", None):
        raise UsageError(
            f"{where}: its tokenizer is a {type(tokenizer).__name__} that open_clip's "
            "configurations do not describe; expected open_clip.get_tokenizer(...)"
        )
    options: dict[str, Any] = {"clean": cleaners[clean]}
    if isinstance(tokenizer, open_clip.tokenizer.HFTokenizer):
        tokenizer.tokenizer.save_pretrained(folder)
        options["strip_sep_token"] = bool(tokenizer.strip_sep_token)
        return {"hf_tokenizer_name": "local", "tokenizer_kwargs": options}
    return {} if cleaners[clean] == "lower" else {"tokenizer_kwargs": options}


def configs_of(model: Any, texts: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The configurations that the model may have: what is read off its modules, or, where that
    does not give its weights, those of open_clip with the same names and shapes. texts: of
    `text_cfg` what the tokenizer says. folder: takes the configuration of a text tower of the
    transformers library."""
    for choices in (_read(model, folder), _listed(model)):
        configs = [{**one, "text_cfg": {**one["text_cfg"], **texts}} for one in choices]
        if found := [config for config in configs if _fits(model, config, folder)]:
            return found
    return []


def _fits(model: Any, config: Mapping[str, Any], folder: Path) -> bool:
    try:
        with torch.device("meta"):
            other = build(config, bert_folder(config, folder))
    except Exception:  # whatever a configuration that is not the model's makes the libraries raise
        return False
    shapes = [{k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (model, other)]
    return shapes[0] == shapes[1]


def _listed(model: Any) -> Iterator[dict[str, Any]]:
    visual, text = getattr(model, "visual", None), getattr(model, "text", model)
    kinds = (type(visual).__name__ == "TimmModel", type(text).__name__ == "HFTextEncoder")
    words = getattr(getattr(text, "token_embedding", None), "weight", None)
    for name in open_clip.list_models() if visual is not None else ():
        config = open_clip.get_model_config(name) or {}
        vision, texts = config.get("vision_cfg", {}), config.get("text_cfg", {})
        same = kinds == ("timm_model_name" in vision, "hf_model_name" in texts)
        same &= getattr(visual, "output_dim", config.get("embed_dim")) == config.get("embed_dim")
        if same and (words is None or words.shape[1] == texts.get("width", 512)):
            yield {**config, "quick_gelu": _uses_quickgelu(model)}


def _uses_quickgelu(model: nn.Module) -> bool:
    return any(type(part).__name__ == "QuickGELU" for part in model.modules())


def _read(model: Any, folder: Path) -> Iterator[dict[str, Any]]:
    try:
        vision, dim = _vision(model.visual)
        text = _text(model, folder)
    except (AttributeError, IndexError, TypeError):
        return
    custom = {"custom_text": True} if hasattr(model, "text") else {}
    yield {
        "embed_dim": dim,
        "quick_gelu": _uses_quickgelu(model),
        **custom,
        "vision_cfg": vision,
        "text_cfg": text,
    }


def _vision(tower: Any) -> tuple[dict[str, Any], int]:
    kind = type(tower).__name__
    size = _square_side(tower.image_size)
    if kind == "ModifiedResNet":
        blocks = [len(getattr(tower, f"layer{i}")) for i in (1, 2, 3, 4)]
        width = int(tower.conv3.out_channels)
        heads = int(tower.attnpool.num_heads)
        config = {"layers": blocks, "width": width, "head_width": width * 32 // heads}
        return {**config, "image_size": size}, int(tower.output_dim)
    if kind == "TimmModel":
        trunk = tower.trunk
        name = trunk.pretrained_cfg.get("architecture")
        parts = dict(tower.head.named_children())
        proj: Any = "linear" if "proj" in parts else "mlp" if "mlp" in parts else ""
        pool = getattr(trunk, "global_pool", "")
        config = {
            "timm_model_name": name,
            "timm_pool": pool if isinstance(pool, str) else "",
            "timm_proj": proj,
            "timm_proj_bias": proj == "linear" and parts["proj"].bias is not None,
            "image_size": size,
        }
        last = [p for p in tower.head.modules() if isinstance(p, nn.Linear)]
        return config, int(last[-1].out_features if last else trunk.num_features)
    blocks, width = tower.transformer.resblocks, int(tower.conv1.out_channels)
    config = {
        **_blocks(blocks),
        "width": width,
        "head_width": width // int(blocks[0].attn.num_heads),
        "image_size": size,
        "patch_size": _square_side(tower.patch_size),
        "no_ln_pre": isinstance(tower.ln_pre, nn.Identity),
        "final_ln_after_pool": bool(tower.final_ln_after_pool),
        "pool_type": tower.pool_type,
        **_norm(tower.ln_post),
    }
    return config, int(tower.output_dim)


def _text(model: Any, folder: Path) -> dict[str, Any]:
    tower = getattr(model, "text", model)
    if type(tower).__name__ == "HFTextEncoder":
        tower.config.save_pretrained(folder / TEXT_TOWER)
        proj = {"Identity": None, "Linear": "linear", "Sequential": "mlp"}
        return {
            "hf_model_name": TEXT_TOWER,
            "hf_proj_type": proj[type(tower.proj).__name__],
            "hf_pooler_type": _POOLERS[type(tower.pooler).__name__],
            "vocab_size": int(tower.config.vocab_size),
        }
    blocks = tower.transformer.resblocks
    projection = tower.text_projection
    config = {
        **_blocks(blocks),
        "context_length": int(tower.context_length),
        "vocab_size": int(tower.vocab_size),
        "width": int(tower.token_embedding.embedding_dim),
        "heads": int(blocks[0].attn.num_heads),
        "no_causal_mask": getattr(tower, "attn_mask", None) is None,
        "pool_type": getattr(tower, "text_pool_type", None) or tower.pool_type,
        "proj_type": "none" if projection is None else "linear",
        "proj_bias": getattr(projection, "bias", None) is not None,
        **_norm(tower.ln_final),
    }
    for name, own in (("pad_id", "pad_id"), ("eos_id", "eos_id")):
        if getattr(tower, own, None) is not None:
            config[name] = int(getattr(tower, own))
    if getattr(tower, "cls_emb", None) is not None:
        config["embed_cls"] = True
    return config


def _blocks(blocks: Any) -> dict[str, Any]:
    first = blocks[0]
    width = int(first.attn.embed_dim)
    scale = getattr(first.ls_1, "gamma", None)
    return {
        "layers": len(blocks),
        "mlp_ratio": first.mlp.c_fc.out_features / width,
        **({} if scale is None else {"ls_init_value": 1e-5}),
    }


def _norm(norm: Any) -> dict[str, Any]:
    return {} if norm.eps == 1e-5 else {"norm_kwargs": {"eps": float(norm.eps)}}


def _square_side(size: Any) -> int:
    """The side of a square."""
    height, width = size if isinstance(size, list | tuple) else (size, size)
    if height != width:
        raise TypeError("no square")
    return int(height)
