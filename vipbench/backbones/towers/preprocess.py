"""Evaluation transforms that know nothing of weights, so that another process can have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from PIL import Image
from torch import Tensor

from vipbench.images import VIEW_MARK, to_rgb


@dataclass(frozen=True)
class AsRgb:
    """RGB image -> (3,H,H) float32 by `transform`, as a library made it."""

    transform: Callable[[Image.Image], Tensor]

    def __call__(self, image: Image.Image) -> Tensor:
        """(3, H, H)."""
        return self.transform(to_rgb(image))


@dataclass(frozen=True)
class ProcessorTransform:
    """RGB image -> (3,H,H) float32 by an image processor of the transformers library. A training
    view, cut out already, is only rescaled and normalised.

    facts: everything that its result depends on, for a backbone's fingerprint.
    """

    processor: Any
    facts: Mapping[str, Any]

    def __call__(self, image: Image.Image) -> Tensor:
        """(3, H, H)."""
        whole = {"do_resize": False, "do_center_crop": False}
        steps = whole if image.info.get(VIEW_MARK) else {}
        found: Tensor = self.processor(
            images=to_rgb(image), return_tensors="pt", **steps
        ).pixel_values[0]
        return found


@dataclass(frozen=True)
class PatchesTransform(ProcessorTransform):
    """RGB image -> (3,H+1,H) float32 by a processor that keeps the aspect ratio and gives patches.

    The patches lie in a square of H, rows first, whatever the grid that they were cut from; the
    first two values of the last row are that grid's height and width. size: H.
    """

    size: int

    def __call__(self, image: Image.Image) -> Tensor:
        """(3, H+1, H)."""
        found = self.processor(images=to_rgb(image), return_tensors="pt")
        patch = self.processor.patch_size
        side = self.size // patch
        x = found.pixel_values[0].reshape(side, side, patch, patch, 3)
        square = x.permute(4, 0, 2, 1, 3).reshape(3, self.size, self.size)
        last = square.new_zeros(3, 1, self.size)
        last[..., :2] = found.spatial_shapes[0].to(last.dtype)
        return torch.cat([square, last], 1)


Transform = AsRgb | ProcessorTransform
Preprocess = Mapping[str, Any] | ProcessorTransform


def evaluation_transform(given: Preprocess, size: int) -> tuple[Transform, Mapping[str, Any]]:
    """The transform to `size` pixels, and what it depends on. given: fields of
    `open_clip.PreprocessCfg` that differ from the defaults, or the transform itself."""
    if isinstance(given, ProcessorTransform):
        return given, given.facts
    settings = open_clip.transform.PreprocessCfg(**{**given, "size": size})
    transform = AsRgb(open_clip.transform.image_transform_v2(settings, is_train=False))
    return transform, {name: str(value) for name, value in vars(settings).items()}


@dataclass(frozen=True)
class TimmTransform:
    """timm's evaluation transform, RGB image -> (3,H,H) float32. A training view, cut out already,
    is only normalised.

    transform: resizing, cutting out, then to a tensor and normalising, as timm made it.
    """

    transform: Any

    def __call__(self, image: Image.Image) -> Tensor:
        """(3, H, H)."""
        found: Any = to_rgb(image)
        steps = self.transform.transforms
        for step in steps[-2:] if image.info.get(VIEW_MARK) else steps:
            found = step(found)
        pixels: Tensor = found
        return pixels
