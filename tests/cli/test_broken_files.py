"""Files and folders that fail while a command is at work: one sentence, which names them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPO, Cli


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of images, one of them cut off."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("a", "b"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    cut = tmp_path / "images" / "train" / "b" / "2.png"
    cut.write_bytes(cut.read_bytes()[:1500])
    return tmp_path / "images"


def test_a_damaged_image_is_found_before_a_run(cli: Cli, images: Path) -> None:
    (images / "test" / "a" / "1.png").write_text("<html>not found</html>")
    given = ("--methods", "zero-shot", "--backbones", "tiny-clip")
    done = cli("run", *given, "--datasets", f"folder:{images}", "--dry-run")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    # The image of the training set is taken for validation, which is read last.
    assert f"dataset 'folder:{images}': image 'test/a/1.png'" in done.stderr
    assert "is not an image" in done.stderr
    assert "1 more cannot be read, such as 'train/b/2.png'" in done.stderr


def test_a_plugin_whose_name_is_no_text(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "plug\udcff.py").touch()
    done = cli("list", "--plugins-dir", tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert r"plug\xff.py" in done.stderr


def test_an_output_folder_that_is_moved_during_a_run(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    env = {**os.environ, "PYTHONPATH": str(REPO), "TOY_PIDS": str(tmp_path / "pids")}
    run = [
        *(sys.executable, "-m", "vipbench", "run", "--plugins-dir", str(toy / "plugins")),
        *("--methods", "slow[seconds=0.5]", "--datasets", f"npz:{toy / 'toy.npz'}", "--views"),
        *("none", "--backbones", "tiny-clip", "--shots", "1", "--seeds", "1-12", "--out", out),
    ]
    process = subprocess.Popen(
        list(map(str, run)), env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    end = time.monotonic() + 100
    while not (tmp_path / "pids").exists() and time.monotonic() < end:
        time.sleep(0.05)
    out.rename(tmp_path / "moved")
    _, message = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"'{out}'" in message
    assert "moved" in message
    assert "rights" not in message
