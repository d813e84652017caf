"""Images of more than 8 bits a value: what their files say of the values, and their way to 8 bits.

A file of 16 bits often holds 12 or 14, and no single image can tell. `StoredAs` is what one file
says; a `PixelRange` holds for all images of a dataset (vipbench/engine/planning/pixels.py).
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vipbench.images.errors import ImageError

# A set of 16-bit images whose training values all stay below it does not use its 16 bits.
HALF_OF_16_BITS = 1 << 15
FULL = 65535
CARD_BITS, CARD_WINDOW = "the card's bits", "the card's window"
SBIT = "PNG's sBIT"
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")

Values = npt.NDArray[Any]

_BITS, _PHOTOMETRIC = 258, 262
_SIZ = b"\xff\x4f\xff\x51"  # the two markers that a JPEG 2000 codestream begins with
_OTHER_BYTE = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}


@dataclass(frozen=True)
class PixelRange:
    """Which values of images of more than 8 bits become black and white, for a whole dataset.

    low becomes 0 and high 255, values between them evenly. A value outside is an error, but where
    clips_low or clips_high cut it off. source: who says so, for messages.
    """

    low: float = 0
    high: float = FULL
    source: str = "16 bits"
    clips_low: bool = False
    clips_high: bool = False

    @property
    def by_card(self) -> bool:
        """Whether the user says so."""
        return self.source in (CARD_BITS, CARD_WINDOW)

    @property
    def is_window(self) -> bool:
        """Whether it says something of stored values alone, and nothing of 8-bit images."""
        return self.source == CARD_WINDOW

    def to_json(self) -> dict[str, Any]:
        """For a file that is to be read again."""
        return asdict(self)

    @classmethod
    def from_json(cls, given: Mapping[str, Any] | None) -> PixelRange | None:
        """What `to_json` gave. Raises TypeError, KeyError or ValueError for anything else."""
        if given is None:
            return None
        low, high = float(given["low"]), float(given["high"])
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"its pixel range is {low} to {high}")
        clips = {key: bool(given[key]) for key in ("clips_low", "clips_high")}
        return cls(low, high, str(given["source"]), **clips)


@dataclass(frozen=True)
class StoredAs:
    """What a file says of its values, before they are decoded.

    bits: of one value. limit: the largest value where the format says so by itself (12-bit TIFF,
    PGM's maxval, JPEG 2000's precision), else None. declared: what TIFF's MaxSampleValue, PNG's
    sBIT or DICOM's Bits Stored says of values of 16 bits or more; declared_by: which of them;
    declared_low: which value is black then. floats, white_is_zero: as the names say. pages: whether
    more follow the first. alpha: whether some is stored.
    """

    bits: int = 8
    limit: int | None = None
    declared: float | None = None
    declared_by: str = ""
    declared_low: float = 0
    floats: bool = False
    unsigned: bool = True
    white_is_zero: bool = False
    pages: bool = False
    alpha: bool = False

    @property
    def deep(self) -> bool:
        """Whether values have more than 8 bits."""
        return self.bits > 8

    @property
    def open(self) -> bool:
        """Whether the file leaves open what its largest value could be."""
        return self.deep and self.limit is None


def stored_as(image: Image.Image, data: bytes, what: str) -> StoredAs:
    """What the file `data`, opened as `image` and not decoded yet, says of its values.

    Raises ImageError for values that no range can be given for.
    """
    facts: dict[str, Any] = {"pages": _more_pages(image, data), "alpha": _has_alpha(image)}
    if image.format == "PNG":
        facts["bits"] = data[24]
        key = image.info.get("transparency")
        if data[24] in (2, 4) and isinstance(key, int):
            # Pillow spreads such greys over 8 bits and leaves the transparent one as it was.
            image.info["transparency"] = key * 255 // ((1 << data[24]) - 1)
        significant = _sbit(data)
        if data[24] == 16 and significant:
            facts |= {"declared": (1 << significant) - 1, "declared_by": SBIT}
    elif image.format == "TIFF":
        facts |= _tiff(image, what)
        facts["white_is_zero"] |= black_is_zero(data) is not data
    elif image.format == "PPM":
        maxval = _maxval(image)
        if maxval > 255:
            facts |= {"bits": 16, "limit": maxval if maxval < FULL else None}
        if image.mode == "F":
            facts |= {"bits": 32, "floats": True}
    elif image.format == "JPEG2000":
        at = data.find(_SIZ)
        bits = (data[at + 42] & 127) + 1 if 0 <= at < len(data) - 42 else 8
        if bits > 8:
            facts |= {"bits": 16, "limit": (1 << bits) - 1 if bits < 16 else None}
    return StoredAs(**facts)


def black_is_zero(data: bytes) -> bytes:
    """A TIFF of more than 8 bits whose white is zero as one whose black is: Pillow then reads the
    same values of it, and reads every kind. Other files as they are."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        return data
    try:
        (first,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, first)
        tags = {}
        for at in range(first + 2, first + 2 + 12 * count, 12):
            tag, _, length, value = struct.unpack_from(f"{order}HHIH", data, at)
            if length == 1:
                tags[tag] = at + 8, value
    except struct.error:  # cut off: Pillow says so
        return data
    at, white = tags.get(_PHOTOMETRIC, (0, 1))
    if white != 0 or tags.get(_BITS, (0, 1))[1] <= 8:
        return data
    return data[:at] + struct.pack(f"{order}H", 1) + data[at + 2 :]


def of_mode(image: Image.Image, what: str) -> StoredAs:
    """The same of an image that was opened before: its mode, and the tags of a TIFF."""
    if image.format == "TIFF":
        return StoredAs(alpha=_has_alpha(image), **_tiff(image, what))
    floats = image.mode == "F"
    bits = 8 if image.mode not in DEEP_MODES else 32 if floats else 16
    return StoredAs(bits, floats=floats, unsigned=image.mode != "I", alpha=_has_alpha(image))


def deep_values(image: Image.Image, stored: StoredAs, data: bytes | None) -> Values:
    """The stored values of the decoded `image`: (H,W) of greys, (H,W,2) with alpha, (H,W,3) or
    (H,W,4) of colours; all of them, where Pillow keeps but the upper 8 bits.

    data: the file, None for an image that was open already.
    """
    values: Values = np.asarray(image)
    if image.mode in DEEP_MODES:
        if stored.bits == 32 and stored.unsigned and not stored.floats:
            values = values.view(np.uint32)
        elif values.dtype.kind == "u":
            values = values.astype(np.uint16)
        if image.format == "JPEG2000" and stored.limit is not None:
            # Pillow shifts them to 16 bits.
            values = values >> (16 - stored.limit.bit_length())
        elif image.format == "PPM" and stored.limit is not None:
            # Pillow stretches them to 16 bits.
            values = np.rint(values * (stored.limit / FULL)).astype(np.int64)
        return values
    low = None if data is None else _lower_bytes(data)
    if low is None:  # 8 bits are all that Pillow gives of them: spread evenly over the range
        most = FULL if stored.limit is None else stored.limit
        return np.rint(values * (most / 255)).astype(np.uint16)
    if image.format == "PPM":
        return low
    upper: Values = values.astype(np.uint16)
    if data is not None and image.format == "PNG" and data[25] == 4:  # grey with alpha
        upper, low = low[..., 0::2].astype(np.uint16), low[..., 1::2]
    return upper << 8 | low


def to_eight_bits(values: Values, pixels: PixelRange, what: str, flip: bool) -> Values:
    """Values of any shape as uint8, rounded to the nearest; flip: white is zero.

    Raises ImageError for a value outside of the range.
    """
    check_range(values, pixels, what)
    low, high = pixels.low, pixels.high
    if values.dtype == np.uint16 and low == int(low) and high == int(high):
        scaled: Values = _table(int(low), int(high), flip)[values]
        return scaled
    if values.dtype.kind in "iu" and low == int(low) and high == int(high):
        span = int(high) - int(low)
        steps = np.clip(values.astype(np.int64), int(low), int(high)) - int(low)
        steps = span - steps if flip else steps
        return ((steps * 510 + span) // (2 * span)).astype(np.uint8)
    inside = np.clip(values.astype(np.float64), low, high)
    above = high - inside if flip else inside - low
    return np.floor(above * 255 / (high - low) + 0.5).astype(np.uint8)


def check_range(values: Values, pixels: PixelRange, what: str) -> None:
    """Raises ImageError for a value outside of the range that is not cut off."""
    least, most = values.min(), values.max()
    if not (np.isfinite(least) and np.isfinite(most)):
        raise ImageError(f"{what} has pixels that are not finite")
    if (least < pixels.low and not pixels.clips_low) or (
        most > pixels.high and not pixels.clips_high
    ):
        raise ImageError(
            f"{what} has pixels from {least:g} to {most:g}; expected {pixels.low:g} to "
            f"{pixels.high:g} ({pixels.source}), as in all images of its dataset"
        )


def range_alone(values: Values, stored: StoredAs, what: str) -> PixelRange:
    """The range of an image that is read without a dataset: what its file says, or all 16 bits
    where it uses them. Raises ImageError where neither says what white is."""
    if stored.limit is not None:
        return PixelRange(0, stored.limit, "the file's own bits")
    least, most = values.min(), values.max()
    if stored.declared is not None and (most <= stored.declared or stored.declared_by != SBIT):
        return PixelRange(stored.declared_low, stored.declared, stored.declared_by)
    uses_16 = stored.declared is not None or most >= HALF_OF_16_BITS
    if not stored.floats and stored.bits == 16 and least >= 0 and (uses_16 or most == 0):
        return PixelRange()
    if not (np.isfinite(least) and np.isfinite(most)):
        raise ImageError(f"{what} has pixels that are not finite")
    raise ImageError(
        f"{what} has {'floating-point' if stored.floats else 'integer'} pixels from {least:g} to "
        f"{most:g}, and does not say which value is white; scale it to 8 bits, or state the range "
        f"in the dataset's card: {card_lines(least, most, stored.floats)}"
    )


def card_lines(least: float, most: float, floats: bool) -> str:
    """The lines for a card that give values from `least` to `most` a range."""
    window = f"`window: [{min(0, least):g}, {most:g}]`"
    if floats or least < 0:
        return f"{window} (which value is black, which is white)"
    bits = max(9, int(most).bit_length())
    dark = "" if bits >= 16 else " (`bits: 16` where images are dark and use all 16)"
    return f"`bits: {min(bits, 16)}`{dark}, or {window} (which value is black, which is white)"


@lru_cache(8)
def _table(low: int, high: int, flip: bool) -> Values:
    """(65536,) uint8: of each stored value its grey."""
    steps = np.clip(np.arange(FULL + 1, dtype=np.int64), low, high) - low
    steps = high - low - steps if flip else steps
    return ((steps * 510 + high - low) // (2 * (high - low))).astype(np.uint8)


def _lower_bytes(data: bytes) -> Values | None:
    """The lower bytes of each 16-bit value (H,W,C), which Pillow has no mode for; of PNG's grey
    with alpha all four bytes (H,W,4); of PPM the values. None where Pillow has no way to them.

    Pillow unpacks one byte of two; asked for the other order of bytes it unpacks the other one.
    """
    with Image.open(BytesIO(data), formats=("PNG", "TIFF", "PPM", "JPEG2000")) as opened:
        image: Any = opened  # its tiles say how bytes are unpacked
        if image.format == "PPM" and image.tile[0].codec_name == "ppm":
            size = image.width * image.height * 3
            found: Values = np.frombuffer(data, ">u2", size, image.tile[0].offset)
            return found.reshape(image.height, image.width, 3).astype(np.uint16)
        tiles = []
        for tile in image.tile:
            args = tile.args if isinstance(tile.args, tuple) else (tile.args,)
            mode, mark, order = str(args[0]).partition(";16")
            if not mark or mode not in ("RGB", "RGBA", "RGBX", "LA"):
                return None
            other = "RGBA"
            if mode == "LA":
                image._mode = other
            else:
                other = f"{mode};16{_OTHER_BYTE[order]}"
            new = (other, *args[1:]) if isinstance(tile.args, tuple) else other
            tiles.append(tile._replace(args=new))
        image.tile = tiles
        image.load()
        return np.array(image)


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info


def _more_pages(image: Image.Image, data: bytes) -> bool:
    if image.format not in ("TIFF", "GIF", "WEBP", "PNG", "MPO"):
        return False
    try:
        return int(getattr(image, "n_frames", 1)) > 1
    except Exception:  # a damaged second page says nothing of the first
        return False


def _sbit(data: bytes) -> int:
    """The significant bits that PNG's sBIT names, of colours the most; 0 where there is none."""
    at = 8
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"sBIT":
            colours = data[at + 8 : at + 8 + (1 if data[25] in (0, 4) else 3)]
            return max(colours, default=0) if size <= 4 else 0
        if kind in (b"IDAT", b"PLTE", b"IEND"):  # sBIT stands before them
            return 0
        at += 12 + size
    return 0


def _maxval(image: Any) -> int:
    tile = image.tile[0]
    if tile.codec_name == "raw":
        return FULL if "16" in str(tile.args) else 255
    return int(tile.args[1]) if isinstance(tile.args, tuple) else 255


def _tiff(image: Any, what: str) -> dict[str, Any]:
    tags = image.tag_v2
    bits = max(tags.get(_BITS, (1,)))
    form = max(tags.get(339, (1,)))
    if form == 2 and bits <= 8:
        raise ImageError(f"{what} has signed pixels of {bits} bits; save them unsigned, or with 16")
    if bits > 8 and tags.get(284, 1) == 2 and len(image.getbands()) > 1:
        # Pillow would take both bytes of a value for two pixels.
        raise ImageError(
            f"{what} keeps {bits}-bit colours in separate planes, which is not supported; save it "
            f"with "
            "planar configuration 1 (contiguous)"
        )
    facts: dict[str, Any] = {"bits": bits, "floats": form == 3, "unsigned": form == 1}
    facts["white_is_zero"] = bits > 8 and tags.get(_PHOTOMETRIC) == 0
    if 8 < bits < 16:
        facts["limit"] = (1 << bits) - 1
    maximum = tags.get(281)
    if bits >= 16 and maximum:
        most = max(maximum) if isinstance(maximum, tuple) else maximum
        if most > 0:
            facts |= {"declared": int(most), "declared_by": "TIFF's MaxSampleValue"}
    return facts
