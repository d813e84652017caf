"""Reading one image, whatever a dataset holds it as. No torch here."""

from __future__ import annotations

import hashlib
import warnings
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

ImageLike: TypeAlias = "str | PathLike[str] | Image.Image | npt.NDArray[np.uint8]"

# Part of a cell's key and of the feature cache's keys: raise it when a file gives other pixels.
READER_REVISION = 1

# 8192 x 8192: above it an image is a slide, which needs tiling first, or a decompression bomb.
MAX_PIXELS = 64 * 1024 * 1024

# Named, because Pillow would otherwise try every format it knows, whatever the file is called:
# one of them (EPS) starts another program on the file.
FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """An image cannot be read; the message names it and says why."""


def open_image(image: ImageLike, name: str = "image") -> Image.Image:
    """`image` as an RGB PIL image, turned upright by its EXIF orientation.

    image: path, PIL image, or uint8 array (H,W), (H,W,1) or (H,W,3). Of an animation the first
        frame is taken; transparent parts become white; 16-bit greys are scaled to 8 bits.
    name: what an error message calls it.
    Raises ImageError: missing, not an image, damaged, of another kind than the above, or larger
    than MAX_PIXELS (which is checked before anything is decoded).
    """
    if isinstance(image, Image.Image):
        return _finish(image, f"image '{name}'")
    if isinstance(image, np.ndarray):
        return _from_array(image, name)
    path = _as_path(image, name)
    what = f"image '{name}'" if str(path) == name else f"image '{name}' ({path})"
    with warnings.catch_warnings():
        # Pillow warns of odd metadata, and of sizes that are refused below by a limit of ours.
        warnings.filterwarnings("ignore", module=r"PIL\b")
        try:
            with Image.open(path, formats=FORMATS) as opened:
                return _finish(opened, what)
        except Image.DecompressionBombError:
            raise ImageError(
                f"{what} is over the limit of {MAX_PIXELS:,} pixels; tile or downscale it first"
            ) from None
        except UnidentifiedImageError:
            size = path.stat().st_size
            why = "is empty (0 bytes)" if size == 0 else f"is not an image ({size} bytes)"
            raise ImageError(
                f"{what} {why}; expected one of {', '.join(FORMATS)}; replace it or take it out "
                "of the split"
            ) from None
        except ImageError:
            raise
        except OSError as error:
            raise _unreadable(what, error) from error
        except Exception as error:  # damaged headers make Pillow raise struct.error, TypeError, …
            raise _damaged(what, error) from error


def to_rgb(image: Image.Image, what: str = "image") -> Image.Image:
    """RGB: transparent parts on white, 16-bit greys scaled linearly, 0..65535 to 0..255.

    Raises ImageError for pixels whose range cannot be known: floats, and "16-bit" pixels that
    are all below 4096, which a fixed scale would turn into a nearly black image in silence.
    """
    if image.mode == "RGB":
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535 or 0 < high < 4096:
            raise ImageError(
                f"{what} has integer pixels from {low} to {high}; expected 8 bits, or 16 bits "
                "that use the range 0..65535; scale it to 8 bits first"
            )
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ImageError(
            f"{what} has floating-point pixels, whose range is not known; save it with 8 bits"
        )
    if image.mode in ("P", "PA", "La", "LA", "RGBa", "RGBA"):
        if image.mode == "La":
            image = image.convert("LA")
        rgba = image.convert("RGBA")
        flat = Image.new("RGB", rgba.size, (255, 255, 255))
        flat.paste(rgba, mask=rgba.getchannel("A"))
        return flat
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ImageError(f"{what} has mode {image.mode}, not RGB: {error}") from error


def digest_image(image: ImageLike, name: str = "image") -> str:
    """SHA-256 of the stored bytes (files), of the array, or of the RGB pixels (PIL images).

    Raises ImageError as `open_image` does.
    """
    if isinstance(image, Image.Image):
        rgb = open_image(image, name)
        return hashlib.sha256(f"{rgb.mode}{rgb.size}".encode() + rgb.tobytes()).hexdigest()
    if isinstance(image, np.ndarray):
        head = f"{image.shape}{image.dtype}".encode()
        return hashlib.sha256(head + np.ascontiguousarray(image).tobytes()).hexdigest()
    path = _as_path(image, name)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(f"image '{name}' ({path})", error) from error


def _finish(image: Image.Image, what: str) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{what} is {width}x{height}, over the limit of {MAX_PIXELS:,} pixels; "
            "tile or downscale it first"
        )
    if width == 0 or height == 0:
        raise ImageError(f"{what} is {width}x{height}: it has no pixels")
    try:
        image.load()
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, … by format
        raise _damaged(what, error) from error
    upright = _UPRIGHT.get(_orientation(image))
    rgb = to_rgb(image, what)
    if upright is None:
        return rgb
    turned = rgb.transpose(upright)
    turned.info.clear()  # the orientation goes with it, or it would be turned once more
    return turned


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # unreadable EXIF beside readable pixels: show them as they lie
        return 1


def _from_array(array: npt.NDArray[Any], name: str) -> Image.Image:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    planes = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] == 3)
    if array.dtype != np.uint8 or not planes or array.size == 0:
        raise ImageError(
            f"image '{name}' is an array of shape {array.shape} and type {array.dtype}; "
            "expected uint8 of shape (H,W) or (H,W,3), with H and W at least 1"
        )
    return _finish(Image.fromarray(array), f"image '{name}'")


def _as_path(image: Any, name: str) -> Path:
    if not isinstance(image, str | PathLike):
        raise ImageError(
            f"image '{name}' is a {type(image).__name__}; expected a path, a PIL image or a "
            "uint8 array"
        )
    return Path(image)


def _damaged(what: str, error: Exception) -> ImageError:
    return ImageError(
        f"{what} is damaged ({error or type(error).__name__}); replace it or take it out of the "
        "split"
    )


def _unreadable(what: str, error: OSError) -> ImageError:
    if isinstance(error, FileNotFoundError):
        return ImageError(f"{what} is missing; expected an image file there")
    if error.errno is None:  # Pillow's own OSErrors carry no number
        return _damaged(what, error)
    return ImageError(f"{what} cannot be read: {error.strerror}")
