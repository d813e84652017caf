"""Every mode, depth and orientation against a second reader: tifffile for TIFF, else numpy."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
import tifffile
from PIL import Image

from vipbench.images import ImageError, PixelRange, examine_image, open_image

RNG = np.random.default_rng(0)
H, W = 9, 11
UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x, 1),
}
WINDOW = "the card's window"


def noise(bits: int, *shape: int) -> np.ndarray:
    kind = np.uint8 if bits <= 8 else np.uint16
    values = RNG.integers(0, 1 << bits, shape or (H, W)).astype(kind)
    values.flat[:2] = 0, (1 << bits) - 1
    return values


def grey(values: np.ndarray, white: int) -> np.ndarray:
    """RGB of stored values, `white` of which is white."""
    scaled = np.floor(values.astype(np.float64) * 255 / white + 0.5).astype(np.uint8)
    return np.stack([scaled] * 3, -1) if scaled.ndim == 2 else scaled


def on_white(values: np.ndarray, alpha: np.ndarray, white: int) -> np.ndarray:
    share = alpha.astype(np.float64)[..., None] / white
    return np.round((values * share + white * (1 - share)) * 255 / white)


def check(path: Path, expected: np.ndarray, tolerance: int = 0, **options) -> None:
    got = np.asarray(open_image(path, **options)).astype(int)
    assert got.shape == expected.shape
    assert np.abs(got - expected.astype(int)).max() <= tolerance


def png(
    values: np.ndarray,
    bits: int,
    colour: int,
    *chunks: tuple[bytes, bytes],
    interlaced: bool = False,
) -> bytes:
    """A PNG as the standard says, which Pillow cannot write in every form."""

    def row(line: np.ndarray) -> bytes:
        if bits >= 8:
            return b"\0" + line.astype(">u2" if bits == 16 else np.uint8).tobytes()
        text = "".join(f"{int(v):0{bits}b}" for v in line)
        return b"\0" + int(text + "0" * (-len(text) % 8), 2).to_bytes((len(text) + 7) // 8, "big")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    steps = [(0, 0, 1, 1)]
    if interlaced:
        steps = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
                 (1, 0, 2, 1)]  # fmt: skip
    raw = b"".join(row(line) for y, x, dy, dx in steps for line in values[y::dy, x::dx])
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, interlaced)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.img"


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("white", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_turned_grey_tiffs(path, orientation, bits, white, compression):
    tag = (274, "H", 1, orientation, True)
    tifffile.imwrite(path, noise(bits), photometric=white, compression=compression, extratags=[tag])
    most = (1 << bits) - 1
    stored = tifffile.imread(path)
    seen = most - stored if white == "miniswhite" else stored
    check(path, UPRIGHT[orientation](grey(seen, most)))


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    "form", [{}, {"compression": "zlib"}, {"tile": (16, 16)}, {"rowsperstrip": 2}]
)
def test_turned_colour_tiffs(path, orientation, bits, order, form):
    tag = (274, "H", 1, orientation, True)
    tifffile.imwrite(path, noise(bits, 20, 30, 3), photometric="rgb", byteorder=order,
                     extratags=[tag], **form)  # fmt: skip
    check(path, UPRIGHT[orientation](grey(tifffile.imread(path), (1 << bits) - 1)))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", ["unspecified", "unassalpha", "assocalpha"])
def test_tiffs_with_a_fourth_channel(path, bits, kind):
    most = (1 << bits) - 1
    values = noise(bits, H, W, 4).astype(int)
    if kind == "assocalpha":
        values[..., :3] = values[..., :3] * values[..., 3:] // most
    tifffile.imwrite(path, values.astype(np.uint8 if bits == 8 else np.uint16), photometric="rgb",
                     extrasamples=[kind])  # fmt: skip
    colours, alpha = values[..., :3], values[..., 3]
    if kind == "unspecified":
        expected = grey(colours, most)
    elif kind == "unassalpha":
        expected = on_white(colours, alpha, most)
    else:
        expected = np.round((colours + most - alpha[..., None]) * 255 / most)
    check(path, expected, tolerance=2)


def test_tiffs_of_other_kinds(path):
    planes = noise(8, 3, H, W)
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate")
    check(path, np.moveaxis(planes, 0, -1))
    colours = RNG.integers(0, 65536, (3, 256)).astype(np.uint16)
    values = noise(8)
    tifffile.imwrite(path, values, photometric="palette", colormap=colours)
    check(path, (colours >> 8).T[values])
    ink = noise(8, H, W, 4)
    for stored in (ink, ink.astype(np.uint16) * 257):
        tifffile.imwrite(path, stored, photometric="separated", planarconfig="contig")
        left = 255 - ink.astype(float)
        check(path, np.round(left[..., :3] * left[..., 3:] / 255), tolerance=1)
    light = noise(8, 8, 8, 3)
    tifffile.imwrite(path, light, photometric="ycbcr")
    # Pillow before 13 refuses such a file as truncated.
    if int(PIL.__version__.split(".")[0]) >= 13:
        y, cb, cr = np.moveaxis(light.astype(float), -1, 0)
        rgb = (y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128),
               y + 1.772 * (cb - 128))  # fmt: skip
        check(path, np.clip(np.stack(rgb, -1), 0, 255).round(), tolerance=2)
    for photometric in ("minisblack", "miniswhite"):
        bits = noise(1).astype(bool)
        tifffile.imwrite(path, bits, photometric=photometric)
        check(path, grey(bits ^ (photometric == "miniswhite"), 1))
    for compression in ("group3", "group4", "packbits", "tiff_lzw"):
        Image.fromarray(bits).save(path, "TIFF", compression=compression)
        check(path, grey(bits, 1))
    # L = 50, a = b = 0 is the grey 119 of sRGB.
    tifffile.imwrite(path, np.full((8, 8, 3), [127, 0, 0], np.uint8), photometric="cielab")
    check(path, np.full((8, 8, 3), 118), tolerance=2)


@pytest.mark.parametrize("white", [0, 1])
def test_twelve_packed_bits_say_themselves_what_white_is(path, white):
    values = noise(12, 4, 6)
    text = "".join(f"{int(v):012b}" for v in values.ravel())
    data = int(text, 2).to_bytes(len(text) // 8, "big")
    tags = [(256, 6), (257, 4), (258, 12), (259, 1), (262, white), (273, 122), (277, 1), (278, 4),
            (279, len(data))]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag == 273 else 3, 1, v) for tag, v in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries
    path.write_bytes(head.ljust(122, b"\0") + data)
    check(path, grey(values if white else 4095 - values, 4095))


@pytest.mark.parametrize(
    ("kind", "order"),
    [(kind, order) for kind in ("u2", "i2", "i4", "f4") for order in "<>"] + [("u4", "<")],
)
@pytest.mark.parametrize("white", ["minisblack", "miniswhite"])
def test_either_end_may_be_white_in_every_kind_and_order_of_bytes(path, order, kind, white):
    values = RNG.integers(0, 30_001, (H, W)).astype(kind)
    tifffile.imwrite(path, values, photometric=white, byteorder=order)
    stored = tifffile.imread(path).astype(float)
    seen = 30_000 - stored if white == "miniswhite" else stored
    check(path, grey(seen, 30_000), pixels=PixelRange(0, 30_000, WINDOW))


@pytest.mark.parametrize(
    ("kind", "options", "why"),
    [
        (np.float32, {}, "floating-point"),
        (np.int16, {}, "white"),
        (np.int32, {}, "white"),
        (np.uint32, {}, "white"),
        (np.int8, {}, "signed"),
        (np.float64, {}, "read"),
        (np.uint16, {"photometric": "rgb", "planarconfig": "separate"}, "planes"),
    ],
)
def test_pixels_that_no_range_is_known_of(path, kind, options, why):
    values = RNG.integers(0, 100, (3, H, W) if options else (H, W)).astype(kind)
    tifffile.imwrite(path, values, **(options or {"photometric": "minisblack"}))
    with pytest.raises(ImageError, match=rf"a\.img.*{why}"):
        open_image(path)
    if why in ("floating-point", "white"):
        check(path, grey(values, 100), pixels=PixelRange(0, 100, WINDOW))
        below = np.clip((values.astype(float) - 20) / 50, 0, 1)
        cut = PixelRange(20, 70, WINDOW, clips_low=True, clips_high=True)
        check(path, np.stack([np.floor(below * 255 + 0.5)] * 3, -1), pixels=cut)
        with pytest.raises(ImageError, match=r"a\.img.* 20 .*70.*window"):
            open_image(path, pixels=PixelRange(20, 70, WINDOW))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_pngs_of_every_kind(path, bits, interlaced):
    def write(values: np.ndarray, colour: int, *chunks: tuple[bytes, bytes]) -> None:
        path.write_bytes(png(values, bits, colour, *chunks, interlaced=interlaced))

    most = (1 << bits) - 1
    values = noise(bits)
    write(values, 0)
    check(path, grey(values, most))
    key = int(values[3, 3])
    write(values, 0, (b"tRNS", struct.pack(">H", key)))
    clear = grey(values, most)
    clear[values == key] = 255
    check(path, clear)
    if bits <= 8:
        palette = RNG.integers(0, 256, (most + 1, 3)).astype(np.uint8)
        write(values, 3, (b"PLTE", palette.tobytes()))
        check(path, palette[values])
        alpha = RNG.integers(2, 256, most + 1).astype(np.uint8)
        write(values, 3, (b"PLTE", palette.tobytes()), (b"tRNS", alpha.tobytes()))
        check(path, on_white(palette, alpha, 255)[values], tolerance=1)
        write(values, 3, (b"PLTE", palette.tobytes()), (b"tRNS", bytes(most + 1)))
        check(path, palette[values])
        assert examine_image(path).empty_alpha
    if bits >= 8:
        colours = noise(bits, H, W, 3)
        write(colours, 2)
        check(path, grey(colours, most))
        write(colours, 2, (b"tRNS", struct.pack(">HHH", *map(int, colours[3, 3]))))
        clear = grey(colours, most)
        clear[3, 3] = 255
        check(path, clear)
        for count, colour in ((1, 4), (3, 6)):
            values = noise(bits, H, W, count + 1)
            write(values, colour)
            seen = on_white(values[..., :-1], values[..., -1], most)
            check(path, np.broadcast_to(seen, (H, W, 3)), tolerance=2)
            assert not examine_image(path).empty_alpha
            values[..., -1] = 0
            write(values, colour)
            check(path, np.broadcast_to(grey(values[..., :-1], most), (H, W, 3)))
            assert examine_image(path).empty_alpha


@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP", "TIFF", "JPEG2000"])
def test_alpha_that_is_zero_everywhere_is_left_out(path, form):
    values = noise(8, 32, 32, 4)
    values[..., 3] = 0
    options = {"WEBP": {"lossless": True, "exact": True}}.get(form, {})
    Image.fromarray(values).save(path, form, **options)
    check(path, values[..., :3])
    values[0, 0, 3] = 255  # one pixel that is seen: the others are transparent
    Image.fromarray(values).save(path, form, **options)
    expected = np.full((32, 32, 3), 255)
    expected[0, 0] = values[0, 0, :3]
    if form != "BMP":  # Pillow reads BMP without alpha
        check(path, expected)


def test_colours_that_were_multiplied_by_an_alpha_of_zero_are_refused(path):
    tifffile.imwrite(path, np.zeros((H, W, 4), np.uint8), photometric="rgb",
                     extrasamples=["assocalpha"])  # fmt: skip
    with pytest.raises(ImageError, match=r"a\.img.*alpha"):
        open_image(path)


@pytest.mark.parametrize("maxval", [1, 200, 255, 1000, 4095, 65535])
def test_pnm_files_say_by_maxval_what_white_is(path, maxval):
    kind = np.dtype(">u2") if maxval > 255 else np.dtype(np.uint8)
    for number, shape in ((5, (H, W)), (6, (H, W, 3))):
        values = RNG.integers(0, maxval + 1, shape)
        values.flat[0] = maxval
        head = f"\n# made here\n{W} {H}\n{maxval}\n".encode()
        path.write_bytes(f"P{number}".encode() + head + values.astype(kind).tobytes())
        check(path, grey(values, maxval), tolerance=maxval == 200)
        path.write_bytes(
            f"P{number - 3}".encode() + head + " ".join(map(str, values.ravel())).encode()
        )
        check(path, grey(values, maxval), tolerance=1)


def test_jpeg_2000(path):
    for bits in (8, 16):
        values = noise(bits, 32, 32)
        Image.fromarray(values).save(path, "JPEG2000")
        check(path, grey(values, (1 << bits) - 1))
    # A codestream that says 12 bits in its header: Pillow shifts its values to 16.
    head = io.BytesIO()
    Image.fromarray(noise(16, 32, 32)).save(head, "JPEG2000", no_jp2=True)
    data = bytearray(head.getvalue())
    data[42] = 11
    path.write_bytes(data)
    assert examine_image(path).stored.limit == 4095


def test_significant_bits_of_pngs(path):
    for values, colour, count in ((noise(12), 0, 1), (noise(12, H, W, 3), 2, 3)):
        sbit = (b"sBIT", bytes([12] * count))
        path.write_bytes(png(values, 16, colour, sbit))
        check(path, grey(values, 4095))
        path.write_bytes(png(values << 4 | values >> 8, 16, colour, sbit))  # as the standard has it
        check(path, grey(values, 4095), tolerance=1)
        path.write_bytes(png(values, 16, colour))
        with pytest.raises(ImageError, match=r"0 .*4095.*`bits: 12`"):
            open_image(path)
        check(path, grey(values, 4095), pixels=PixelRange(0, 4095, "the card's bits"))
    fourteen = noise(14)
    path.write_bytes(png(fourteen, 16, 0))
    with pytest.raises(ImageError, match=r"16383; .* 4095"):
        open_image(path, pixels=PixelRange(0, 4095, "the card's bits"))


def test_the_largest_value_that_a_tiff_names(path):
    values = noise(12)
    values[values == 4095] = 4094
    for largest in (4095, 5000):
        tag = (281, "H", 1, largest, True)
        tifffile.imwrite(path, values, photometric="miniswhite", extratags=[tag])
        check(path, grey(largest - values.astype(int), largest))
    tifffile.imwrite(path, values + 3000, photometric="minisblack", extratags=[(281, "H", 1, 4095)])
    with pytest.raises(ImageError, match=r"a\.img.* 4095 .*MaxSampleValue"):
        open_image(path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "LA",
                                  "PA", "RGBX", "RGBa", "La", "I;16", "I;16B", "I"])  # fmt: skip
def test_images_in_memory_of_every_mode(mode):
    deep = mode.startswith("I")
    image = Image.new(mode, (3, 2), 40_000 if deep else 0)
    before = image.tobytes()
    rgb = open_image(image)
    assert rgb.mode == "RGB"
    assert rgb.size == (3, 2)
    assert image.tobytes() == before
    if deep:
        assert rgb.getpixel((0, 0)) == (156, 156, 156)
