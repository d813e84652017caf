"""Reading one image, whatever a dataset holds it as. No torch here."""

from vipbench.images.depth import PixelRange, StoredAs
from vipbench.images.errors import ImageChangedError, ImageError
from vipbench.images.reading import (
    FORMATS,
    MAX_PIXELS,
    ImageFacts,
    ImageLike,
    digest_image,
    examine_image,
    open_image,
    to_rgb,
)

# Part of a cell's key and of the feature cache's keys: raise it when a file gives other pixels.
READER_REVISION = 2

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "READER_REVISION",
    "ImageChangedError",
    "ImageError",
    "ImageFacts",
    "ImageLike",
    "PixelRange",
    "StoredAs",
    "digest_image",
    "examine_image",
    "open_image",
    "to_rgb",
]
