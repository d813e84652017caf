"""DICOM files as images (extra `dicom`: pydicom): modality transformation, window, colours.

The steps are those of the DICOM standard (PS3.3 C.11.1, C.11.2, C.7.6.3.1), computed by pydicom.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vipbench.files import open_regular
from vipbench.images.depth import FULL, PixelRange, StoredAs, Values, range_alone, to_eight_bits
from vipbench.images.errors import ImageError

DICOM_SUFFIXES = frozenset((".dcm", ".dicom", ".ima"))
# The prefix of a card's `group` that takes the groups from the files.
FROM_DICOM = "dicom:"
BITS_STORED = "DICOM's Bits Stored"

_INSTALL = "pip install 'vipbench[dicom]'"
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_RLE = "1.2.840.10008.1.2.5"
_GREYS = ("MONOCHROME1", "MONOCHROME2")
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def is_dicom(data: bytes, suffix: str) -> bool:
    """Whether the file `data` is DICOM, by its content or its name (old files have no prefix)."""
    return data[128:132] == b"DICM" or suffix.lower() in DICOM_SUFFIXES


@dataclass(frozen=True)
class Dicom:
    """A DICOM file whose pixels are not decoded yet. size: (W,H). stored: what the file states
    about its values after the modality transformation."""

    size: tuple[int, int]
    stored: StoredAs
    _dataset: Any
    _what: str

    def values(self) -> Values:
        """Values after the modality transformation (H,W), or colours (H,W,3). Raises ImageError."""
        from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

        found = self._dataset
        syntax = found.file_meta.TransferSyntaxUID
        plugin = "pylibjpeg" if syntax.is_compressed and syntax != _RLE else ""
        with _reading(self._what):
            values: Values = pixel_array(found, decoding_plugin=plugin)
            if found.PhotometricInterpretation == "PALETTE COLOR":
                return np.asarray(apply_color_lut(values, found))[..., :3]
            if found.PhotometricInterpretation in _GREYS:
                values = apply_modality_lut(values, found)
            return values

    def to_rgb(self, pixels: PixelRange | None) -> Image.Image:
        """The image as RGB. pixels: the range of values of more than 8 bits in its dataset; a range
        from the card overrides the file's own window. Raises ImageError."""
        values, stored = self.values(), self.stored
        grey = values.ndim == 2
        by_card = pixels is not None and pixels.by_card and grey
        if not stored.deep and pixels is not None and pixels.is_window:
            raise ImageError(
                f"{self._what} has 8 bits; {pixels.source} applies only to images with more bits"
            )
        if not grey:
            white = 255 if values.dtype == np.uint8 else stored.limit or FULL
            shown = to_eight_bits(values, PixelRange(0, white, "its bits"), self._what, flip=False)
        elif stored.deep and (by_card or stored.open):
            if pixels is None:
                pixels = range_alone(values, stored, self._what)
            shown = to_eight_bits(values, pixels, self._what, stored.white_is_zero)
        else:
            shown = self._windowed(values)
        return Image.fromarray(shown).convert("RGB")

    def _windowed(self, values: Values) -> Values:
        """Values (H,W) through the file's own window or LUT, scaled from its output range."""
        from pydicom.pixels import apply_voi_lut

        found = self._dataset
        low, high = _range(found)
        with _reading(self._what):
            if (lut := _lut(found, "VOILUTSequence")) is not None:
                low, high = 0, (1 << lut.LUTDescriptor[2]) - 1
                # pydicom indexes entries in the type of their values: 8 bits fail for longer LUTs.
                count, first, _ = lut.LUTDescriptor
                lut.LUTDescriptor = [count, first, 16]
                values = np.clip(values, first, first + (count or 1 << 16) - 1)
            output = np.asarray(apply_voi_lut(values, found), dtype=np.float64)
        share = np.clip((output - low) / (high - low), 0, 1)
        share = 1 - share if self.stored.white_is_zero else share
        return np.floor(share * 255 + 0.5).astype(np.uint8)


def open_dicom(data: bytes, what: str) -> Dicom:
    """The DICOM file `data`. Raises ImageError if it is not a single image that can be decoded,
    or if pydicom is missing."""
    pydicom = _library(what)
    if _DEFLATED in data[128:4096]:
        raise ImageError(
            f"{what} is a DICOM file with the transfer syntax Deflated Explicit VR Little Endian, "
            "which is not supported; save it in another transfer syntax"
        )
    with _reading(what):
        found = pydicom.dcmread(BytesIO(data), force=True)
        if not any(name in found for name in _PIXELS):
            kind = found.get("SOPClassUID")
            named = f" ({kind.name})" if kind else ", or not a DICOM file"
            raise ImageError(
                f"{what} is a DICOM file without pixels{named}; expected an image; remove it from "
                "the data"
            )
        frames = int(found.get("NumberOfFrames") or 1)
        if frames > 1:
            raise ImageError(
                f"{what} is a multi-frame DICOM file with {frames} frames; expected one image; "
                "save the frame that you need as a separate file"
            )
        photometric = str(found.PhotometricInterpretation)
        if photometric not in (*_GREYS, *_COLOURS):
            raise ImageError(
                f"{what} has the photometric interpretation {photometric}; expected one of "
                f"{', '.join((*_GREYS, *_COLOURS))}"
            )
        if "TransferSyntaxUID" not in found.file_meta:
            implicit, _ = found.original_encoding
            uid = pydicom.uid
            found.file_meta.TransferSyntaxUID = (
                uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
            )
        _check_decoder(found.file_meta.TransferSyntaxUID, what)
        size = (int(found.Columns), int(found.Rows))
        if photometric == "PALETTE COLOR":
            count, _, bits = found.RedPaletteColorLookupTableDescriptor
            if bits == 8 and (count or 1 << 16) > 256:
                raise ImageError(f"{what} has a palette of {count} colours of 8 bits; expected 256")
        return Dicom(size, _stored(found), found, what)


def dicom_value(path: Path, keyword: str) -> str:
    """The element `keyword` (such as PatientID) of the DICOM file `path`, or "" if it has none.
    Raises ImageError if the file is not DICOM or the keyword is unknown."""
    what = f"'{path}'"
    pydicom = _library(what)
    tag = pydicom.datadict.tag_for_keyword(keyword)
    if tag is None:
        raise ImageError(
            f"'{keyword}' is not the keyword of a DICOM element; expected one such as PatientID"
        )
    try:
        with open_regular(path) as file:
            if not is_dicom(file.read(132), path.suffix):
                raise ImageError(f"{what} is not a DICOM file, so it has no {keyword}")
            file.seek(0)
            with _reading(what):
                found = pydicom.dcmread(
                    file, force=True, stop_before_pixels=True, specific_tags=[tag]
                )
                return str(found.get(keyword) or "").strip()
    except OSError as error:
        raise ImageError(f"{what} cannot be read: {error.strerror}") from error


def _library(what: str) -> Any:
    try:
        import pydicom
        import pydicom.datadict
        import pydicom.uid
    except ImportError:
        raise ImageError(
            f"{what} is a DICOM file; reading it needs pydicom, which is not installed: {_INSTALL}"
        ) from None
    return pydicom


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Turn errors of pydicom and its decoders into ImageError, and hide warnings on metadata."""
    log = logging.getLogger("pydicom")
    disabled = log.disabled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.disabled = True
        try:
            yield
        except (ImageError, MemoryError):
            raise
        except Exception as error:  # of damaged files: any kind
            raise ImageError(
                f"{what} is damaged or not DICOM ({error or type(error).__name__}); replace it or "
                "remove it from the data"
            ) from error
        finally:
            log.disabled = disabled


def _check_decoder(syntax: Any, what: str) -> None:
    """Compressed pixels are decoded by pylibjpeg alone, so numbers do not depend on which decoders
    are installed; RLE, which is exact, is decoded by pydicom."""
    from pydicom.pixels import get_decoder

    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise ImageError(
            f"{what} has the transfer syntax {syntax.name}, which is not supported"
        ) from None
    if syntax.is_compressed and syntax != _RLE and "pylibjpeg" not in decoder.available_plugins:
        raise ImageError(
            f"{what} is compressed ({syntax.name}); decoding it needs pylibjpeg, which is not "
            "installed: pip install 'vipbench[dicom-compressed]'"
        )


def _stored(found: Any) -> StoredAs:
    photometric = found.PhotometricInterpretation
    floats = "PixelData" not in found
    if photometric not in _GREYS:
        bits = int(found.BitsStored)
        if photometric == "PALETTE COLOR":
            bits = int(found.RedPaletteColorLookupTableDescriptor[2])
        return StoredAs(8 if bits <= 8 else 16, limit=(1 << bits) - 1)
    lut, white = _lut(found, "ModalityLUTSequence"), photometric == "MONOCHROME1"
    bits = 32 if floats else int(found.BitsStored if lut is None else lut.LUTDescriptor[2])
    low, high = (0.0, 1.0) if floats else _range(found)
    if bits <= 8 or (_has_window(found) and not floats):
        return StoredAs(8 if bits <= 8 else 16, limit=1 << bits, white_is_zero=white)
    scaled = lut is None and _rescaled(found)
    known = not floats and bits not in (16, 32)
    return StoredAs(
        16 if bits <= 16 else 32,
        declared=_plain(max(low, high)) if known else None,
        declared_low=_plain(min(low, high)) if known else 0,
        declared_by=BITS_STORED if known else "",
        floats=floats or (scaled and not float(found.RescaleSlope).is_integer()),
        unsigned=min(low, high) >= 0,
        white_is_zero=white,
    )


def _plain(value: float) -> float:
    return int(value) if float(value).is_integer() else float(value)


def _range(found: Any) -> tuple[float, float]:
    """The smallest and the largest value of the stored bits after the modality transformation: the
    output range of pydicom's window. With a negative slope, the first is the larger."""
    lut = _lut(found, "ModalityLUTSequence")
    bits = int(found.BitsStored if lut is None else lut.LUTDescriptor[2])
    low, high = 0.0, float((1 << bits) - 1)
    if lut is None and int(found.get("PixelRepresentation") or 0) == 1:
        low, high = -float(1 << (bits - 1)), float((1 << (bits - 1)) - 1)
    if lut is None and _rescaled(found):
        slope, intercept = float(found.RescaleSlope), float(found.RescaleIntercept)
        if slope == 0:
            raise ValueError("its rescale slope is 0")
        low, high = low * slope + intercept, high * slope + intercept
    return low, high


def _rescaled(found: Any) -> bool:
    return found.get("RescaleSlope") is not None and found.get("RescaleIntercept") is not None


def _has_window(found: Any) -> bool:
    """Whether there is a window or a VOI LUT."""
    window = None not in (found.get("WindowCenter"), found.get("WindowWidth"))
    return window or _lut(found, "VOILUTSequence") is not None


def _lut(found: Any, name: str) -> Any:
    items = found.get(name)
    if not items or items[0].get("LUTDescriptor") is None or items[0].get("LUTData") is None:
        return None
    return items[0]
