"""Small files that would unpack to gigabytes: refused by name, with under 200 MB growth."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from tests.reliability.grid import REPO
from vipbench.datasets.npz import NpzDataset

GROWTH = 200e6
# A process of its own for each file, whose peak is that file's alone.
PROGRAM = r"""
import json, os, re, sys
from vipbench.api import DataError, ImageError, open_image
from vipbench.datasets.npz import NpzDataset
import numpy, PIL.Image, PIL.TiffImagePlugin, PIL.PngImagePlugin

def peak():
    # Not getrusage's, which a process inherits from who started it.
    return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) * 1024

for path in sys.argv[1:]:
    if os.fork():
        os.wait()
        continue
    before = peak()
    try:
        if path.endswith("npz"):
            splits = NpzDataset(path).load(None)
            splits["train"].open(0)
        else:
            open_image(path)
    except (DataError, ImageError) as error:
        print(json.dumps([path, str(error), peak() - before]), flush=True)
    os._exit(0)
"""


def chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def zeros(count: int) -> bytes:
    """`count` zeros, deflated piece by piece."""
    packer, parts = zlib.compressobj(9), []
    piece = bytes(1 << 20)
    for _ in range(count >> 20):
        parts.append(packer.compress(piece))
    return b"".join(parts) + packer.compress(bytes(count % (1 << 20))) + packer.flush()


def png(path: Path) -> None:
    """20,000 x 20,000 RGB."""
    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    body = zeros(64 << 20)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def text_png(path: Path) -> None:
    """1 x 1, with a compressed comment of 256 MB."""
    head = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    comment = b"Comment\0\0" + zeros(256 << 20)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"zTXt", comment)
        + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")
    )  # fmt: skip


def tiff(path: Path, side: int = 30_000) -> None:
    """side x side greys in one deflated strip."""
    body = zeros(256 << 20)
    entries = [
        *((256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1)),
        *((273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, side), (279, 4, 1, len(body))),
    ]
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    directory = struct.pack("<H", len(entries)) + table + struct.pack("<I", 0)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(body)) + body + directory)


def npz(path: Path, size: int = 300 << 20) -> None:
    """Images that say truly how large they are: a few hundred kilobytes for 300 MB."""
    count = size >> 20
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for split in ("train", "val", "test"):
            few = count if split == "train" else 2
            with archive.open(f"{split}_images.npy", "w", force_zip64=True) as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": (few, 1024, 1024)}
                np.lib.format.write_array_header_1_0(file, header)
                for _ in range(few):
                    file.write(bytes(1 << 20))
            with archive.open(f"{split}_labels.npy", "w") as file:
                np.lib.format.write_array(file, (np.arange(few) % 2).astype(np.uint8)[:, None])


BOMBS = {
    "bomb.png": (png, "20000x20000|67,108,864 pixels"),
    "text.png": (text_png, "damaged|large|image"),
    "bomb.tiff": (tiff, "limit"),
    "bomb.npz": (npz, "'train_images' .*bomb"),
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int]]:
    """File -> why it was refused, and how many bytes that took."""
    folder = tmp_path_factory.mktemp("bombs")
    for name, (make, _) in BOMBS.items():
        make(folder / name)
        assert (folder / name).stat().st_size < 2e6
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *(folder / name for name in BOMBS)],
        capture_output=True, text=True, check=True, cwd=REPO, timeout=120,
    )  # fmt: skip
    found = map(json.loads, done.stdout.splitlines())
    return {Path(path).name: (message, growth) for path, message, growth in found}


@pytest.mark.parametrize("name", BOMBS)
def test_refused(refusals: dict[str, tuple[str, int]], name: str) -> None:
    message, growth = refusals[name]
    assert name in message
    assert re.search(BOMBS[name][1], message), message
    assert growth < GROWTH


def test_what_shrinks_well_is_no_bomb(tmp_path: Path) -> None:
    arrays = {}
    for split, count in (("train", 80), ("val", 2), ("test", 2)):
        picture = np.zeros((count, 1024, 1024), np.uint8)
        picture[:, ::8, ::8] = np.random.default_rng(0).integers(0, 255, (count, 128, 128))
        arrays[f"{split}_images"] = picture
        arrays[f"{split}_labels"] = (np.arange(count) % 2).astype(np.uint8)[:, None]
    np.savez_compressed(tmp_path / "good.npz", **arrays)
    (tmp_path / "good.yaml").write_text("class_names: [a, b]\n")
    splits = NpzDataset(str(tmp_path / "good.npz")).load(None)
    assert splits["train"].open(0).size == (1024, 1024)
