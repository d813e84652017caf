"""Evaluation transforms that know nothing of weights, so that another process can have them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional as pixels_of

from vipbench.images import to_rgb


@dataclass(frozen=True)
class AsRgb:
    """RGB image -> (3,H,H) float32 by `transform`, as a library made it."""

    transform: Callable[[Image.Image], Tensor]

    def __call__(self, image: Image.Image) -> Tensor:
        """(3, H, H)."""
        return self.transform(to_rgb(image))


@dataclass(frozen=True)
class TimmTransform:
    """timm's evaluation transform, RGB image -> (3,H,H) float32: the shorter side to H over the
    crop's share, the middle cut out. An image of H x H is only normalised.

    size: H. share: crop_pct. squash: whether sides are brought to it apart.
    """

    size: int
    share: float
    squash: bool
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Image.Image) -> Tensor:
        """(3, H, H)."""
        image, size = to_rgb(image), self.size
        if image.size != (size, size):
            side = math.floor(size / self.share)
            how = transforms.InterpolationMode(self.interpolation)
            image = pixels_of.resize(image, (side, side) if self.squash else side, how)
            image = pixels_of.center_crop(image, [size, size])
        found: Tensor = pixels_of.normalize(
            pixels_of.to_tensor(image), list(self.mean), list(self.std)
        )
        return found
