"""Seeded training views of one image: random resized crop and flip.

View v of an image is a function of (image digest, seed, v) alone, so that one bank of views
serves every method and, support sets being nested, every shot count.
"""

from __future__ import annotations

import math
import random

from PIL import Image

from vipbench.api import Views
from vipbench.engine.seeding import seed_of
from vipbench.images import VIEW_MARK


def training_view(
    image: Image.Image, size: int, views: Views, key: tuple[object, ...]
) -> Image.Image:
    """An RGB view of `size` x `size` pixels, ready for a backbone's `preprocess`, which finds
    VIEW_MARK in its `info`.

    key: what identifies the draw, see `draw_view`.
    """
    box, flip = draw_view(image.width, image.height, views, key)
    view = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else view
    view.info[VIEW_MARK] = True
    return view


def draw_view(
    width: int, height: int, views: Views, key: tuple[object, ...]
) -> tuple[tuple[float, float, float, float], bool]:
    """The box (left, top, right, bottom) that a view is cut from, and whether it is flipped.

    key: what identifies the draw. The crop covers a share of the area drawn evenly from
    views.scale, its aspect ratio log-evenly from 3/4 to 4/3; ten tries, then the centre, as
    torchvision's RandomResizedCrop does.
    """
    rng = random.Random(seed_of("vipbench-view", *key))
    box = _crop(width, height, views.scale, rng)
    return box, views.flip and rng.random() < 0.5


def _crop(
    width: int, height: int, scale: tuple[float, float], rng: random.Random
) -> tuple[float, float, float, float]:
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side
