"""A backbone of raw pixels whose transform another process imports in a moment."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vipbench.api import ImageBackbone, Tap


@dataclass(frozen=True)
class Shrink:
    """To 8 x 8 pixels of -1 to 1. lie: what is added in any process but the one that made it."""

    lie: float = 0.0
    home: int = 0

    def __call__(self, image: Image.Image) -> Tensor:
        small = image.resize((8, 8), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1) / 127.5 - 1
        return pixels + (self.lie if os.getpid() != self.home else 0)


class Light(ImageBackbone):
    name = "light"
    dim, image_size, vision_width, vision_layers = 192, 8, None, 0
    fingerprint = "light-1"
    device = torch.device("cpu")

    def __init__(self, shrink: Callable[[Image.Image], Tensor] | None = None) -> None:
        self._shrink = shrink or Shrink()

    def to(self, device: torch.device | str) -> None:
        self.device = torch.device(device)

    def preprocess(self, image: Image.Image) -> Tensor:
        return self._shrink(image)

    def preprocess_alone(self) -> Callable[[Image.Image], Tensor] | None:
        return self._shrink

    def encode_image(self, pixels: Tensor, tap: Tap | None = None) -> Tensor:
        return pixels.flatten(1)

    def trainable_copy(self, pretrained: bool = True) -> nn.Module:
        return nn.Flatten()


class OwnWay(Light):
    """Overrides `preprocess` alone: what it inherits does something else."""

    name = "own-way"

    def preprocess(self, image: Image.Image) -> Tensor:
        return -super().preprocess(image)
