"""Reading one image, whatever a dataset holds it as."""

from vipbench.images.depth import PixelRange, StoredAs
from vipbench.images.dicom import DICOM_SUFFIXES, FROM_DICOM, dicom_value
from vipbench.images.errors import ImageChangedError, ImageError
from vipbench.images.reading import (
    FORMATS,
    MAX_PIXELS,
    VOLUME_HINT,
    VOLUMES,
    ImageFacts,
    ImageLike,
    digest_image,
    examine_image,
    open_image,
    to_rgb,
)

# What is read, as the endings of files tell.
IMAGE_SUFFIXES = frozenset(
    (
        ".apng .bmp .dib .gif .j2c .j2k .jfif .jif .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx .mpo .pbm "
        ".pfm .pgm .png .pnm .ppm .tif .tiff .webp"
    ).split()
).union(DICOM_SUFFIXES)

# The entry of an image's `info` that marks a training view: cut out, in the tower's size.
VIEW_MARK = "vipbench-view"

__all__ = [
    "FORMATS",
    "FROM_DICOM",
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "VIEW_MARK",
    "VOLUMES",
    "VOLUME_HINT",
    "ImageChangedError",
    "ImageError",
    "ImageFacts",
    "ImageLike",
    "PixelRange",
    "StoredAs",
    "dicom_value",
    "digest_image",
    "examine_image",
    "open_image",
    "to_rgb",
]
