"""Reading one image, whatever a dataset holds it as."""

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

# The entry of an image's `info` that marks a training view: cut out, in the tower's size.
VIEW_MARK = "vipbench-view"

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "READER_REVISION",
    "VIEW_MARK",
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
