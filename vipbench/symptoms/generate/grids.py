"""The images of stage (b): training images of one class as one grid, without metadata."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence

from PIL import Image, ImageOps

SIDE = 224  # pixels of a tile
MOST_IMAGES = 16
GAP = 4


def grid(images: Sequence[Image.Image]) -> bytes:
    """Up to 16 RGB images as one PNG, 4 x 4; fewer make a smaller grid.

    Every pixel is drawn anew on a fresh canvas, so that no metadata of the files comes along.
    """
    if not 1 <= len(images) <= MOST_IMAGES:
        raise ValueError(f"a grid takes 1 to {MOST_IMAGES} images, got {len(images)}")
    columns = math.ceil(len(images) ** 0.5)
    rows = math.ceil(len(images) / columns)
    step = SIDE + GAP
    canvas = Image.new("RGB", (columns * step - GAP, rows * step - GAP), (255, 255, 255))
    for i, image in enumerate(images):
        tile = ImageOps.pad(image.convert("RGB"), (SIDE, SIDE), color=(255, 255, 255))
        canvas.paste(tile, ((i % columns) * step, (i // columns) * step))
    stream = io.BytesIO()
    canvas.save(stream, format="PNG")
    return stream.getvalue()


def pixel_hash(png: bytes) -> str:
    """SHA-256 of a picture's size and pixels; files of the same pixels may differ by compressor."""
    with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
        rgb = picture.convert("RGB")
    return hashlib.sha256(f"{rgb.size}".encode() + rgb.tobytes()).hexdigest()
