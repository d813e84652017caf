"""One image, out of a file, an array or a PIL image: RGB pixels, digest, what the file says."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from vipbench import alive
from vipbench.files import open_regular
from vipbench.images.depth import (
    DEEP_MODES,
    FULL,
    PixelRange,
    StoredAs,
    Values,
    black_is_zero,
    deep_values,
    of_mode,
    range_alone,
    stored_as,
    to_eight_bits,
)
from vipbench.images.dicom import Dicom, is_dicom, open_dicom
from vipbench.images.errors import ImageChangedError, ImageError

ImageLike: TypeAlias = "str | PathLike[str] | Image.Image | npt.NDArray[np.uint8]"

# 8192 x 8192: above it an image is a slide, which needs tiling first, or a decompression bomb.
MAX_PIXELS = 64 * 1024 * 1024

# A file above it is larger than MAX_PIXELS of the largest pixels, uncompressed.
MAX_BYTES = 1 << 30

# Named, because Pillow would otherwise try every format it knows, whatever the file is called:
# one of them (EPS) starts another program on the file.
FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# Endings of volumes, which are refused, and what to do with them.
VOLUMES = (".nii", ".nii.gz")
VOLUME_HINT = "volumes are not supported; save the slices that you need as PNG or DICOM files"
# Starts of files, and how whole ones end: others of these formats may be cut off.
_ENDS = ((b"\xff\xd8\xff", b"\xff\xd9"), (b"\x89PNG", b"IEND\xaeB`\x82"))
_EXTRA_SAMPLES = 338
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageFacts:
    """An image as it lies there. digest: SHA-256, as `digest_image` gives it. stored: None of an
    array. empty_alpha: whether alpha was stored and is zero everywhere. least, most: the stored
    values of more than 8 bits; None where they were not asked for."""

    digest: str
    stored: StoredAs | None = None
    empty_alpha: bool = False
    least: float | None = None
    most: float | None = None


def open_image(
    image: ImageLike,
    name: str = "image",
    pixels: PixelRange | None = None,
    sha256: str | None = None,
) -> Image.Image:
    """`image` as an RGB PIL image, turned upright by its EXIF orientation.

    image: path, PIL image, or uint8 array (H,W), (H,W,1) or (H,W,3). Of several pages or frames
        the first is taken; transparent parts become white, but alpha that is zero everywhere is
        left out; values of more than 8 bits are scaled to 8.
    name: what an error message calls it.
    pixels: the range of values of more than 8 bits in the image's dataset; without it the image
        itself has to tell.
    sha256: what `digest_image` has to give. A file is read once: the bytes that are decoded are
        those that are compared.
    Raises ImageError: missing, not an image, damaged, of another kind than the above, outside of
    `pixels`, or larger than MAX_PIXELS (which is checked before anything is decoded);
    ImageChangedError where `sha256` is another.
    """
    if isinstance(image, Image.Image | np.ndarray):
        if sha256 is not None:
            _check_digest(digest_image(image, name), sha256, f"image '{name}'")
        if isinstance(image, np.ndarray):
            return _from_array(image, name)
        what = f"image '{name}'"
        return _finish(image, what, of_mode(image, what), pixels, None)
    path = _as_path(image, name)
    what = _image_words(path, name)
    data = _read(path, what)
    if sha256 is not None:
        _check_digest(hashlib.sha256(data).hexdigest(), sha256, what)
    _refuse_volume(path, data, what)
    if is_dicom(data, path.suffix):
        return _sized(open_dicom(data, what), what).to_rgb(pixels)
    with _opened(data, what) as opened:
        return _finish(opened, what, stored_as(opened, data, what), pixels, data)


def examine_image(
    image: ImageLike, name: str = "image", values: bool = False, known: bool = False
) -> ImageFacts:
    """What there is to know of an image before it is used; a file is read once.

    values: whether to decode values of more than 8 bits for the least and the most of them; known:
        also where the file says their range itself.
    Raises ImageError where it is missing or cannot be read. A JPEG or PNG file that ends as such
    files do is not decoded for that.
    """
    alive.sign()
    if isinstance(image, np.ndarray):
        return ImageFacts(digest_image(image, name))
    if isinstance(image, Image.Image):
        digest, what, data = digest_image(image, name), f"image '{name}'", None
    else:
        path = _as_path(image, name)
        what = _image_words(path, name)
        data = _read(path, what)
        digest = hashlib.sha256(data).hexdigest()
        whole = _ends_as_whole(data)
        if whole and data[:3] == b"\xff\xd8\xff" and b"MPF\0" not in data[:65536]:
            return ImageFacts(digest, StoredAs())  # JPEG has 8 bits, no alpha, one page
        _refuse_volume(path, data, what)
        if is_dicom(data, path.suffix):
            return _dicom_facts(_sized(open_dicom(data, what), what), digest, values, known)
    if data is None:
        assert isinstance(image, Image.Image)
        stored = of_mode(image, what)
        return _facts(image, digest, stored, what, values and (known or stored.open), None)
    with _opened(data, what) as opened:
        stored = stored_as(opened, data, what)
        _check_size(opened, what)
        if not whole:
            _load(opened, what)
        return _facts(opened, digest, stored, what, values and (known or stored.open), data)


def _ends_as_whole(data: bytes) -> bool:
    tail = data[-64:].rstrip(b"\0\r\n ")
    return any(data.startswith(start) and tail.endswith(end) for start, end in _ENDS)


def to_rgb(image: Image.Image, what: str = "image") -> Image.Image:
    """RGB of a PIL image: transparent parts on white, more than 8 bits scaled to 8.

    Raises ImageError for pixels whose range cannot be known: floats, and 16-bit pixels that are
    all below 32768, which a fixed scale would turn into a nearly black image in silence.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    return _to_rgb(image, what, of_mode(image, what), None, None)


def digest_image(image: ImageLike, name: str = "image") -> str:
    """SHA-256 of the stored bytes (files), of the array, or of the pixels (PIL images).

    Raises ImageError as `open_image` does.
    """
    alive.sign()
    if isinstance(image, Image.Image):
        # Deep pixels have no RGB of their own before a range is known.
        pixels = image if image.mode in DEEP_MODES else open_image(image, name)
        return hashlib.sha256(f"{pixels.mode}{pixels.size}".encode() + pixels.tobytes()).hexdigest()
    if isinstance(image, np.ndarray):
        head = f"{image.shape}{image.dtype}".encode()
        return hashlib.sha256(head + np.ascontiguousarray(image).tobytes()).hexdigest()
    path = _as_path(image, name)
    return hashlib.sha256(_read(path, _image_words(path, name))).hexdigest()


def _image_words(path: Path, name: str) -> str:
    return f"image '{name}'" if str(path) == name else f"image '{name}' ({path})"


def _read(path: Path, what: str) -> bytes:
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size <= MAX_BYTES:
                return file.read()
    except OSError as error:
        raise _unreadable(what, error) from error
    raise ImageError(f"{what} has more than {MAX_BYTES:,} bytes; tile or downscale it first")


def _check_digest(found: str, expected: str, what: str) -> None:
    if found != expected:
        raise ImageChangedError(
            f"{what} changed during the run: its SHA-256 was {expected[:12]} when the run was "
            f"planned and is {found[:12]} now; do not change data during a run; run again"
        )


@contextmanager
def _opened(data: bytes, what: str) -> Iterator[Image.Image]:
    """The image file `data`, not decoded yet. What Pillow raises becomes ImageError."""
    with warnings.catch_warnings():
        # Pillow warns of odd metadata, and of sizes that are refused below by a limit of ours.
        warnings.filterwarnings("ignore", module=r"PIL\b")
        try:
            # Of a path Pillow maps uncompressed files, and turned ones by the wrong size.
            with Image.open(BytesIO(black_is_zero(data)), formats=FORMATS) as opened:
                yield opened
        except Image.DecompressionBombError:
            raise ImageError(
                f"{what} is over the limit of {MAX_PIXELS:,} pixels; tile or downscale it first"
            ) from None
        except UnidentifiedImageError:
            size = len(data)
            why = "is empty (0 bytes)"
            if size:
                why = f"is not an image ({size} bytes), or of a kind that Pillow does not read"
            raise ImageError(
                f"{what} {why}; expected one of {', '.join(FORMATS)}; replace it or remove it "
                f"from the split"
            ) from None
        except ImageError:
            raise
        except OSError as error:
            raise _unreadable(what, error) from error
        except Exception as error:  # damaged headers make Pillow raise struct.error, TypeError, …
            raise _damaged(what, error) from error


def _facts(
    image: Image.Image,
    digest: str,
    stored: StoredAs,
    what: str,
    values: bool,
    data: bytes | None,
) -> ImageFacts:
    if not (stored.alpha or (values and stored.deep)):
        return ImageFacts(digest, stored)
    _check_size(image, what)
    _load(image, what)
    empty = stored.alpha and _alpha_is_empty(image)
    if not (values and stored.deep):
        return ImageFacts(digest, stored, empty)
    found = _colours(deep_values(image, stored, data), image)
    return ImageFacts(digest, stored, empty, float(found.min()), float(found.max()))


def _finish(
    image: Image.Image,
    what: str,
    stored: StoredAs,
    pixels: PixelRange | None,
    data: bytes | None,
) -> Image.Image:
    _check_size(image, what)
    _load(image, what)
    upright = _UPRIGHT.get(_orientation(image))
    rgb = _to_rgb(image, what, stored, pixels, data)
    if upright is None:
        return rgb
    turned = rgb.transpose(upright)
    turned.info.clear()  # the orientation goes with it, or it would be turned once more
    return turned


def _dicom_facts(image: Dicom, digest: str, values: bool, known: bool) -> ImageFacts:
    if not (values and image.stored.deep and (known or image.stored.open)):
        return ImageFacts(digest, image.stored)
    found = image.values()
    return ImageFacts(digest, image.stored, False, float(found.min()), float(found.max()))


def _sized(image: Dicom, what: str) -> Dicom:
    _check_size(image, what)
    return image


def _refuse_volume(path: Path, data: bytes, what: str) -> None:
    """NIfTI is known by its name, or by the marks of its header."""
    if path.name.lower().endswith(VOLUMES) or data[344:348] in (b"n+1\0", b"ni1\0"):
        raise ImageError(f"{what} is a NIfTI volume; {VOLUME_HINT}")


def _check_size(image: Image.Image | Dicom, what: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{what} is {width}x{height}, over the limit of {MAX_PIXELS:,} pixels; "
            "tile or downscale it first"
        )
    if width == 0 or height == 0:
        raise ImageError(f"{what} is {width}x{height}: it has no pixels")


def _load(image: Image.Image, what: str) -> None:
    path = getattr(image, "filename", "")
    if path:  # a name makes Pillow map uncompressed files, and turned ones by the wrong size
        image.filename = ""  # type: ignore[attr-defined]  # of files alone
    try:
        image.load()
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, … by format
        raise _damaged(what, error) from error
    finally:
        if path:
            image.filename = path  # type: ignore[attr-defined]


def _to_rgb(
    image: Image.Image,
    what: str,
    stored: StoredAs,
    pixels: PixelRange | None,
    data: bytes | None,
) -> Image.Image:
    given = image
    if stored.deep:
        image = _deep_to_eight(image, what, stored, pixels, data)
    elif pixels is not None and pixels.is_window:
        raise ImageError(
            f"{what} has 8 bits; {pixels.source} applies only to images with more bits"
        )
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "La":  # Pillow turns no La into RGBA
        image = image.convert("LA")
    if image.mode in ("PA", "LA", "RGBa", "RGBA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        if _alpha_is_empty(image):
            return _without_alpha(given, what, image)
        flat = Image.new("RGB", rgba.size, (255, 255, 255))
        flat.paste(rgba, mask=rgba.getchannel("A"))
        return flat
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ImageError(f"{what} has mode {image.mode}, not RGB: {error}") from error


def _deep_to_eight(
    image: Image.Image,
    what: str,
    stored: StoredAs,
    pixels: PixelRange | None,
    data: bytes | None,
) -> Image.Image:
    """An image of more than 8 bits with 8: L, LA, RGB, RGBA or CMYK."""
    values = deep_values(image, stored, data)
    colours = _colours(values, image)
    if pixels is None or (stored.limit is not None and not pixels.by_card):
        pixels = range_alone(colours, stored, what)
    grey = to_eight_bits(colours, pixels, what, stored.white_is_zero)
    if image.mode == "CMYK":
        return Image.frombytes("CMYK", image.size, grey.tobytes())
    alpha = None
    if colours is not values:
        last = values[..., -1]
        most = stored.limit or (FULL if last.max() > pixels.high else int(pixels.high))
        alpha = to_eight_bits(last, PixelRange(0, most), what, flip=False)
    elif "transparency" in image.info:
        others = values != np.asarray(image.info["transparency"])
        alpha = (others if others.ndim == 2 else others.any(-1)).astype(np.uint8) * 255
    if alpha is None:
        return Image.fromarray(grey)
    planes = grey.reshape(*grey.shape[:2], -1)
    return Image.fromarray(np.concatenate([planes, alpha[..., None]], -1))


def _colours(values: Values, image: Image.Image) -> Values:
    """`values` without alpha."""
    if values.ndim == 2 or values.shape[-1] == 3 or image.mode == "CMYK":
        return values
    colours = values[..., :-1]
    return colours[..., 0] if colours.shape[-1] == 1 else colours


def _alpha_is_empty(image: Image.Image) -> bool:
    """Whether alpha is zero everywhere; the least above it, of 255, is no alpha that one sees."""
    if image.mode in DEEP_MODES:
        return image.getextrema() == (image.info["transparency"],) * 2
    bands = image.getbands()
    if bands[-1] in "Aa" and image.mode != "LAB":
        alpha = image.getchannel(bands[-1])
    else:
        alpha = image.convert("RGBA").getchannel("A")
    most = alpha.getextrema()[1]
    return isinstance(most, int | float) and most <= 1


def _without_alpha(given: Image.Image, what: str, image: Image.Image) -> Image.Image:
    """RGB of `image`, which was made of `given`."""
    tags: Any = getattr(given, "tag_v2", {})
    if given.format == "TIFF" and 1 in tags.get(_EXTRA_SAMPLES, ()):
        raise ImageError(
            f"{what} has alpha that is zero everywhere, and colours that were multiplied by it; "
            "save it without alpha"
        )
    if image.mode == "PA":
        return image.convert("RGBA").convert("RGB")
    image = image.copy()
    image.info.pop("transparency", None)
    return image.convert("RGB")


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
    return _finish(Image.fromarray(array), f"image '{name}'", StoredAs(), None, None)


def _as_path(image: Any, name: str) -> Path:
    if not isinstance(image, str | PathLike):
        raise ImageError(
            f"image '{name}' is a {type(image).__name__}; expected a path, a PIL image or a "
            "uint8 array"
        )
    return Path(image)


def _damaged(what: str, error: Exception) -> ImageError:
    return ImageError(
        f"{what} is damaged ({error or type(error).__name__}); replace it or remove it from the "
        f"split"
    )


def _unreadable(what: str, error: OSError) -> ImageError:
    if isinstance(error, FileNotFoundError):
        return ImageError(f"{what} is missing; expected an image file there")
    if error.errno is None:  # Pillow's own OSErrors carry no number
        return _damaged(what, error)
    return ImageError(f"{what} cannot be read: {error.strerror}")
