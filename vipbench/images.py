"""Reading one image, whatever a dataset holds it as. No torch here."""

from __future__ import annotations

import hashlib
import warnings
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

ImageLike: TypeAlias = "str | PathLike[str] | Image.Image | npt.NDArray[np.uint8]"

# A medical image above this is a slide, which needs tiling first, or a decompression bomb.
MAX_PIXELS = 512 * 1024 * 1024 // 4


class ImageError(ValueError):
    """An image cannot be read; the message names it and says why."""


def open_image(image: ImageLike, name: str = "image") -> Image.Image:
    """`image` as an RGB PIL image, turned upright by its EXIF orientation.

    image: path, PIL image, or uint8 array (H,W), (H,W,1) or (H,W,3).
    name: what an error message calls it.
    Raises ImageError.
    """
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, np.ndarray):
        return _from_array(image, name)
    path = Path(image)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                width, height = opened.size
                if width * height > MAX_PIXELS:
                    raise ImageError(
                        f"image '{name}' ({path}) is {width}x{height}, over the limit of "
                        f"{MAX_PIXELS:,} pixels; tile or downscale it first"
                    )
                opened.load()
                return to_rgb(ImageOps.exif_transpose(opened) or opened)
    except FileNotFoundError:
        raise ImageError(f"image '{name}' is missing: {path}") from None
    except UnidentifiedImageError:
        raise ImageError(
            f"image '{name}' ({path}) is not an image file that Pillow reads (it has "
            f"{path.stat().st_size} bytes); replace it or take it out of the split"
        ) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ImageError(
            f"image '{name}' ({path}) is too large to decode safely; downscale it first"
        ) from None
    except ImageError:
        raise
    except (OSError, SyntaxError, ValueError, IndexError, EOFError) as error:
        # Pillow raises any of these for truncated or altered files, by format.
        raise ImageError(
            f"image '{name}' ({path}) is damaged: {error}; replace it or take it out of the split"
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB, with 16-bit greys scaled to 8 bits (Pillow's own conversion clips them)."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if values.max(initial=0) > 255 else 255.0
        grey = np.clip(values * (255.0 / top), 0, 255).round().astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("P", "PA", "LA", "RGBA"):
        rgba = image.convert("RGBA")
        flat = Image.new("RGB", rgba.size, (255, 255, 255))
        flat.paste(rgba, mask=rgba.getchannel("A"))
        return flat
    return image.convert("RGB")


def digest_image(image: ImageLike, name: str = "image") -> str:
    """SHA-256 of the stored bytes (files) or of the pixels (arrays, PIL images)."""
    if isinstance(image, Image.Image):
        return hashlib.sha256(
            f"{image.mode}{image.size}".encode() + image.tobytes()
        ).hexdigest()
    if isinstance(image, np.ndarray):
        head = f"{image.shape}{image.dtype}".encode()
        return hashlib.sha256(head + np.ascontiguousarray(image).tobytes()).hexdigest()
    try:
        with open(image, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ImageError(f"image '{name}' cannot be read: {error}") from error


def _from_array(array: npt.NDArray[Any], name: str) -> Image.Image:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.dtype != np.uint8 or not (array.ndim == 2 or array.shape[-1:] == (3,)):
        raise ImageError(
            f"image '{name}' is an array of shape {array.shape} and type {array.dtype}; "
            "expected uint8 of shape (H,W) or (H,W,3)"
        )
    return Image.fromarray(array).convert("RGB")
