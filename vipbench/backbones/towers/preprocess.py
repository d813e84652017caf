"""Evaluation transforms that know nothing of weights, so that another process can have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
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
class CentreSquare:
    """RGB image -> (3,size,size) float32: the shortest side resized (bicubic), the centre cut out,
    normalised. What open_clip and torchvision do by default, bit for bit, without importing them.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Image.Image) -> Tensor:
        """(3, size, size)."""
        shortest = min(image.size)
        width, height = (
            self.size if side == shortest else int(self.size * side / shortest)
            for side in image.size
        )
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        image = image.crop((left, top, left + self.size, top + self.size))
        values = torch.from_numpy(np.array(image.convert("RGB")))
        pixels = values.permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return pixels.sub_(mean).div_(std)


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


# Fields of `open_clip.transform.PreprocessCfg`, and what OpenAI's CLIPs have there.
_DEFAULTS = {
    "mode": "RGB",
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}
Transform = AsRgb | ProcessorTransform
Preprocess = Mapping[str, Any] | ProcessorTransform


def evaluation_transform(given: Preprocess, size: int) -> tuple[Transform, Mapping[str, Any]]:
    """The transform to `size` pixels, and what it depends on. given: fields of
    `open_clip.PreprocessCfg` that differ from the defaults, or the transform itself."""
    if isinstance(given, ProcessorTransform):
        return given, given.facts
    settings: dict[str, Any] = {**_DEFAULTS, **given, "size": size}
    facts = {name: str(value) for name, value in settings.items()}
    if settings["resize_mode"] == "shortest" and settings["interpolation"] == "bicubic":
        constants = [np.broadcast_to(settings[name], 3).tolist() for name in ("mean", "std")]
        return AsRgb(CentreSquare(size, tuple(constants[0]), tuple(constants[1]))), facts
    import open_clip

    made = open_clip.transform.PreprocessCfg(**settings)
    return AsRgb(open_clip.transform.image_transform_v2(made, is_train=False)), facts


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
