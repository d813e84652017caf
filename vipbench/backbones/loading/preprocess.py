"""The evaluation transform that a checkpoint of the transformers library states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from vipbench.backbones.loading.weights import read_json
from vipbench.errors import UsageError

# Part of the fingerprint of backbones whose transform is read here: raise it when the same folder
# gives other pixels.
PREPROCESS_REVISION = 1

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5)
_INTERPOLATION = {2: "bilinear", 3: "bicubic"}
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What the library's own image processors do where a checkpoint states nothing; KEEP states it in
# its model card alone.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "clip": {"mean": _CLIP_MEAN, "std": _CLIP_STD, "interpolation": "bicubic"},
    "siglip": {
        "mean": _HALF, "std": _HALF, "interpolation": "bicubic", "resize_mode": "squash"
    },
    "keep": {"mean": _IMAGENET_MEAN, "std": _IMAGENET_STD, "interpolation": "bicubic"},
    "siglip2": {
        "mean": _HALF, "std": _HALF, "interpolation": "bilinear", "resize_mode": "squash"
    },
}  # fmt: skip


def read_preprocess(folder: Path, kind: str, model: nn.Module, where: str) -> dict[str, Any]:
    """Fields of `open_clip.PreprocessCfg` but the size, which is the tower's own.

    SigLIP 2 models of flexible resolution get the square that their position table is for.
    Raises UsageError where nothing is stated and none is known, and for a transform that
    resizes to another size than it cuts out.
    """
    stated = _stated(folder)
    if stated is None:
        if kind not in _DEFAULTS:
            raise UsageError(
                f"{where} has no preprocessor_config.json, which says how images are resized and "
                "normalised; put the one of its image tower there"
            )
        return dict(_DEFAULTS[kind])
    found = dict(_DEFAULTS.get(kind, {"resize_mode": "squash", "interpolation": "bilinear"}))
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if stated.get(theirs) is not None:
            found[ours] = tuple(stated[theirs])
    found.setdefault("mean", _HALF)
    found.setdefault("std", _HALF)
    if stated.get("do_normalize") is False:
        found |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    if (resample := stated.get("resample")) is not None:
        if resample not in _INTERPOLATION:
            raise UsageError(f"{where} resizes images with Pillow's filter {resample}; known: 2, 3")
        found["interpolation"] = _INTERPOLATION[resample]
    if kind == "siglip2":
        return found
    size, crop = _side(stated.get("size")), _side(stated.get("crop_size"))
    cropped = bool(stated.get("do_center_crop", kind == "clip"))
    shortest = isinstance(stated.get("size"), dict) and "shortest_edge" in stated["size"]
    if shortest or (cropped and kind == "clip"):
        found["resize_mode"] = "shortest"
    elif size is not None:
        found["resize_mode"] = "squash"
    if cropped and size is not None and crop is not None and size != crop:
        raise UsageError(
            f"{where} resizes images to {size} and cuts out {crop} pixels; only one size for both "
            "is supported"
        )
    return found


def _stated(folder: Path) -> dict[str, Any] | None:
    for name, part in (
        ("preprocessor_config.json", None),
        ("processor_config.json", "image_processor"),
    ):
        path = folder / name
        if path.is_file():
            loaded = read_json(path)
            inner = loaded if part is None else loaded.get(part)
            if isinstance(inner, dict):
                return inner
    return None


def _side(size: Any) -> int | None:
    if isinstance(size, dict):
        size = size.get("shortest_edge") or size.get("height")
    return None if size is None else int(size)
