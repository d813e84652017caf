"""The evaluation transform of a checkpoint of the transformers library, by the library itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vipbench.api import UnsupportedError
from vipbench.backbones.towers.preprocess import (
    PatchesTransform,
    Preprocess,
    ProcessorTransform,
)
from vipbench.errors import UsageError
from vipbench.images import VIEW_MARK

# Part of the fingerprint of backbones whose transform is read here: raise it when the same folder
# gives other pixels.
PREPROCESS_REVISION = 2
FILES = ("preprocessor_config.json", "processor_config.json")
# KEEP states its transform in its model card alone: torchvision's, with these constants.
_KEEP = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bicubic"}
# Where a folder states nothing, the library's defaults for these kinds are brought to the size of
# the image tower.
UNSTATED = {"clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor"}
# What says how a file came about, not what is done to an image.
_NO_FACTS = ("image_processor_type", "processor_class", "feature_extractor_type", "auto_map")


def read_preprocess(folder: Path, kind: str, size: int, where: str, remote: bool) -> Preprocess:
    """What the folder's own image processor does. size: side of the square that the image tower
    takes.

    Raises UsageError where nothing is stated and none is known, and for a processor that gives
    the tower anything but such squares.
    """
    import transformers

    if not any((folder / name).is_file() for name in FILES):
        if kind == "keep":
            return _KEEP
        if kind not in UNSTATED:
            raise UsageError(
                f"{where} has no {FILES[0]}, which says how images are resized and normalised; "
                "put the one of its image tower there"
            )
        made: Any = getattr(transformers, f"{UNSTATED[kind]}Pil")
        square = {"height": size, "width": size}
        if kind == "clip":
            return _checked(made(size={"shortest_edge": size}, crop_size=square), size, where)
        return _checked(made(size=square), size, where)
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(
            folder, backend="pil", local_files_only=True, trust_remote_code=remote
        )
    except Exception as error:  # transformers raises many kinds
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(f"the image processor of {where} cannot be loaded: {reason[0]}") from error
    return _checked(processor, size, where)


def _checked(processor: Any, size: int, where: str) -> Preprocess:
    """The processor's transform. Raises UsageError where it is none to squares of `size`."""
    facts = {k: v for k, v in processor.to_dict().items() if k not in _NO_FACTS}
    facts["processor"] = type(processor).__name__
    try:
        if hasattr(processor, "max_num_patches"):
            return _patches(processor, size, facts)
        transform = ProcessorTransform(processor, facts)
        _check_squares(transform, size)
    except UnsupportedError as error:
        raise UsageError(f"the image processor of {where} cannot be used: {error}") from error
    return transform


def _patches(processor: Any, size: int, facts: dict[str, Any]) -> PatchesTransform:
    most, patch = int(processor.max_num_patches), int(processor.patch_size)
    if math.isqrt(most) ** 2 != most or size != math.isqrt(most) * patch:
        raise UnsupportedError(
            f"it cuts images into at most {most} patches of {patch} pixels, and the image tower "
            f"takes squares of {size} pixels; expected max_num_patches {(size // patch) ** 2}"
        )
    if not processor.do_resize:
        raise UnsupportedError("it does not resize images (do_resize is false)")
    return PatchesTransform(processor, facts, size)


def _check_squares(transform: ProcessorTransform, size: int) -> None:
    """What an engine relies on: every image becomes a square of `size`, and a training view, which
    is such a square, keeps its pixels where they are."""
    settings = ", ".join(
        f"{name} {value}"
        for name in ("do_resize", "size", "do_center_crop", "crop_size", "do_pad")
        if (value := transform.facts.get(name)) is not None
    )

    def pixels(image: Image.Image) -> torch.Tensor:
        try:
            with np.errstate(all="ignore"):  # what is not finite is refused below
                found = transform(image)
        except Exception as error:  # whatever a setting makes the library raise
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UnsupportedError(f"it fails on an RGB image: {reason[0]} ({settings})") from error
        if tuple(found.shape) != (3, size, size):
            kind = "a training view" if image.info else "an image"
            raise UnsupportedError(
                f"it turns {kind} of {image.width}x{image.height} pixels into "
                f"{tuple(found.shape)}, and the image tower takes (3, {size}, {size}) ({settings})"
            )
        if not found.isfinite().all():
            std = transform.facts.get("image_std")
            raise UnsupportedError(f"it makes values that are not finite (image_std {std})")
        return found

    rng = np.random.default_rng(0)
    for height, width in ((size, size), (2 * size + 3, size + 1), (max(1, size // 2), 3 * size)):
        pixels(Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)))
    values = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    views = [Image.fromarray(x) for x in (values, np.roll(values, (1, 1), (0, 1)))]
    for view in views:
        view.info[VIEW_MARK] = True
    plain, rolled = map(pixels, views)
    if not torch.allclose(plain.roll((1, 1), (1, 2)), rolled, atol=1e-5):
        raise UnsupportedError(
            "it moves pixels of training views, which must only be rescaled and normalised "
            f"({settings})"
        )
