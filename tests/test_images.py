from __future__ import annotations

import re
import subprocess
import sys
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from vipbench.images import ImageError, digest_image, open_image

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)


def save(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp", ".ppm", ".PNG"])
def test_lossless_formats_come_back_as_they_are(tmp_path, suffix):
    options = {"lossless": True} if suffix == ".webp" else {}
    path = save(tmp_path / f"a{suffix}", Image.fromarray(NOISE), **options)
    assert np.array_equal(pixels(open_image(path)), NOISE)
    assert np.array_equal(pixels(open_image(str(path))), NOISE)


def test_an_opened_image_outlives_its_file(tmp_path):
    path = save(tmp_path / "a.jpg", Image.fromarray(NOISE), quality=95)
    image = open_image(path)
    path.unlink()
    assert image.resize((2, 2)).size == (2, 2)
    assert image.getpixel((7, 5)) == tuple(pixels(image)[5, 7].tolist())


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "LA", "RGBA"])
def test_modes_become_rgb(tmp_path, mode):
    grey = np.full((5, 4, 3), 255, np.uint8)
    grey[2] = 0
    suffix = ".tif" if mode == "CMYK" else ".png"
    path = save(tmp_path / f"a{suffix}", Image.fromarray(grey).convert(mode))
    assert np.array_equal(pixels(open_image(path)), grey)


def test_cmyk_jpeg(tmp_path):
    red = Image.new("RGB", (16, 16), (200, 30, 30)).convert("CMYK")
    got = pixels(open_image(save(tmp_path / "a.jpg", red, quality=95)))
    assert np.abs(got.astype(int) - [200, 30, 30]).max() < 12


def test_transparent_parts_become_white(tmp_path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0] = [10, 20, 30, 255]
    got = pixels(open_image(save(tmp_path / "a.png", Image.fromarray(rgba))))
    assert got[0].tolist() == [[10, 20, 30]] * 2
    assert got[1].tolist() == [[255, 255, 255]] * 2


def test_palette_with_transparency_bytes_gives_no_warning(tmp_path):
    palette = Image.fromarray(NOISE).quantize(8)
    path = save(tmp_path / "a.png", palette, transparency=bytes([0, 128] + [255] * 6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(path).size == (8, 6)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    values = np.array([[0, 257, 30000, 65535]], np.uint16)
    path = save(tmp_path / f"a{suffix}", Image.fromarray(values))
    assert pixels(open_image(path))[0, :, 0].tolist() == [0, 1, 117, 255]
    dark = save(tmp_path / f"black{suffix}", Image.fromarray(np.zeros((2, 2), np.uint16)))
    assert pixels(open_image(dark)).max() == 0


def test_pixels_of_unknown_range_are_refused(tmp_path):
    twelve = save(tmp_path / "a.png", Image.fromarray(np.array([[0, 4011]], np.uint16)))
    with pytest.raises(ImageError, match=r"a\.png.* 4011.*8 bits"):
        open_image(twelve)
    floats = save(tmp_path / "b.tif", Image.fromarray(np.array([[0.5, 1]], np.float32)))
    with pytest.raises(ImageError, match=r"b\.tif.*floating-point"):
        open_image(floats)
    signed = save(tmp_path / "c.tif", Image.fromarray(np.array([[-5, 9000]], np.int32)))
    with pytest.raises(ImageError, match=r"-5 .*9000"):
        open_image(signed)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_exif_orientation(tmp_path, orientation, suffix):
    # What the camera stores is the upright image, undone by the inverse of the rotation.
    stored = {
        1: NOISE,
        2: NOISE[:, ::-1],
        3: NOISE[::-1, ::-1],
        4: NOISE[::-1],
        5: NOISE.transpose(1, 0, 2),
        6: np.rot90(NOISE, 1),
        7: NOISE[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(NOISE, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == ".webp" else {}
    image = Image.fromarray(np.ascontiguousarray(stored))
    path = save(tmp_path / f"a{suffix}", image, exif=exif, **options)
    once = open_image(path)
    assert np.array_equal(pixels(once), NOISE)
    assert np.array_equal(pixels(open_image(once)), NOISE), "turned twice"
    with Image.open(path) as lazy:
        assert np.array_equal(pixels(open_image(lazy)), NOISE)


def test_broken_exif_leaves_the_image(tmp_path):
    data = BytesIO()
    Image.fromarray(NOISE).save(data, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    path = tmp_path / "a.png"
    path.write_bytes(data.getvalue())
    assert np.array_equal(pixels(open_image(path)), NOISE)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".tif", ".png"])
def test_the_first_frame_of_an_animation(tmp_path, suffix):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("white", "black", "red")]
    path = save(tmp_path / f"a{suffix}", frames[0], save_all=True, append_images=frames[1:])
    assert pixels(open_image(path)).min() > 250


def test_one_pixel(tmp_path):
    path = save(tmp_path / "a.png", Image.new("L", (1, 1), 7))
    assert pixels(open_image(path)).tolist() == [[[7, 7, 7]]]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".gif", ".webp"])
@pytest.mark.parametrize("keep", [0.05, 0.5, 0.9])
def test_truncated_files_are_named(tmp_path, suffix, keep):
    noise = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"cut{suffix}", Image.fromarray(noise))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ImageError, match=rf"'scan 3' \(.*cut{suffix}\)"):
        open_image(path, name="scan 3")


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP"]), st.data())
def test_altered_bytes_never_raise_anything_else(tmp_path_factory, kind, data):
    stored = BytesIO()
    Image.fromarray(NOISE).save(stored, kind)
    content = bytearray(stored.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "altered"
    path.write_bytes(content)
    try:
        assert open_image(path).mode == "RGB"
    except ImageError as error:
        assert str(path) in str(error)  # noqa: PT017 - either outcome is right


def test_what_is_not_an_image_file(tmp_path):
    with pytest.raises(ImageError, match=r"gone\.png"):
        open_image(tmp_path / "gone.png", name="x")
    empty = tmp_path / "empty.png"
    empty.touch()
    with pytest.raises(ImageError, match=r"0 bytes"):
        open_image(empty)
    text = tmp_path / "text.jpg"
    text.write_text("hello")
    with pytest.raises(ImageError, match=r"text\.jpg.*\(5 bytes\).*PNG"):
        open_image(text)
    with pytest.raises(ImageError, match="directory"):
        open_image(tmp_path)
    with pytest.raises(ImageError, match="missing"):
        digest_image(tmp_path / "gone.png")


def test_postscript_is_never_run(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageError, match="image"):
        open_image(path)


def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "bomb.png"
    saved_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    Image.new("1", (20_000, 20_000)).save(path)
    large = tmp_path / "large.png"
    Image.new("1", (10_000, 9_000)).save(large)  # between the limit and Pillow's own
    Image.MAX_IMAGE_PIXELS = saved_limit
    program = """
import resource, sys
from vipbench.images import ImageError, open_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        open_image(path)
    except ImageError as error:
        print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    command = [sys.executable, "-W", "error", "-c", program, str(path), str(large)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, second, grown = done.stdout.splitlines()
    assert "bomb.png" in first
    assert "limit" in first
    assert re.search("10000x9000, .*67,108,864 pixels", second)
    assert int(grown) < 50  # MB


images = arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5), st.just(3)))


@given(images)
def test_arrays_come_back_as_they_are(array):
    assert np.array_equal(pixels(open_image(array)), array)
    assert np.array_equal(pixels(open_image(array[..., 0]))[..., 2], array[..., 0])
    assert np.array_equal(pixels(open_image(array[..., :1]))[..., 2], array[..., 0])
    assert np.array_equal(pixels(open_image(array[::-1, ::-1])), array[::-1, ::-1])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 2), np.float32),
        np.zeros((2, 2), np.int64),
        np.zeros((2, 2, 4), np.uint8),
        np.zeros((1, 2, 2, 3), np.uint8),
        np.zeros((0, 5), np.uint8),
        np.zeros(3, np.uint8),
        np.array([[None]]),
    ],
)
def test_wrong_arrays_are_named(array):
    with pytest.raises(ImageError, match=r"'row 7' .*uint8"):
        open_image(array, name="row 7")


def test_wrong_types_are_named():
    with pytest.raises(ImageError, match=r"'x' .*bytes"):
        open_image(b"a.png", name="x")  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="'x' is a NoneType"):
        digest_image(None, name="x")  # type: ignore[arg-type]


def test_digests_follow_content_not_names(tmp_path):
    one = save(tmp_path / "a.png", Image.fromarray(NOISE))
    two = save(tmp_path / "b.png", Image.fromarray(NOISE))
    other = save(tmp_path / "c.png", Image.fromarray(NOISE[::-1].copy()))
    assert digest_image(one) == digest_image(two) != digest_image(other)
    array = NOISE.copy()
    assert digest_image(array) == digest_image(np.asfortranarray(array))
    assert digest_image(array) != digest_image(array.transpose(1, 0, 2))
    # Two palette images with equal indices and other colours differ.
    red, blue = Image.new("P", (2, 2)), Image.new("P", (2, 2))
    red.putpalette([255, 0, 0])
    blue.putpalette([0, 0, 255])
    assert digest_image(red) != digest_image(blue)
