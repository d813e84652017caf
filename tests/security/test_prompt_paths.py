"""A prompt file does not say where its maker keeps weights, and is usable with them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from tests.conftest import Cli

LOCAL = '''
"""tiny-clip, as if its weights were in a file; their digest is what the file says."""
from pathlib import Path

import vipbench
from vipbench.backbones.open_clip import tiny_clip

def load(argument):
    backbone = tiny_clip(None)
    backbone.name, backbone.fingerprint = "local", Path(argument).read_text()
    return backbone

@vipbench.hookimpl
def register_backbones(register):
    register("local", load)
'''


def test_prompt_files_hold_no_path(cli: Cli, tmp_path: Path) -> None:
    plugins, private = tmp_path / "plugins", tmp_path / "ward-seven" / "weights.bin"
    plugins.mkdir()
    (plugins / "local.py").write_text(LOCAL)
    private.parent.mkdir()
    private.write_text("the weights")
    image = tmp_path / "a.png"
    Image.fromarray(np.full((28, 28), 230, np.uint8)).save(image)
    done = cli(
        "run", "--methods", "ncm", "--datasets", "synthderm", "--backbones", f"local:{private}",
        "--shots", "1", "--seeds", "1", "--views", "none", "--validation", "none",
        "--plugins-dir", plugins, "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = cli("prompts", tmp_path / "run", "-o", tmp_path / "out", "--patient-data")
    assert done.returncode == 0, done.stderr
    made = list((tmp_path / "out").iterdir())
    assert {file.suffix for file in made} == {".safetensors", ".md", ".csv"}
    for file in made:
        assert str(tmp_path).encode() not in file.read_bytes()
        assert b"ward-seven" not in file.read_bytes()
        assert file.suffix == ".csv" or b"local:PATH" in file.read_bytes()
    (prompt,) = (file for file in made if file.suffix == ".safetensors")
    code = ("--plugins-dir", plugins)
    for words in (("predict", prompt, image), ("evaluate", prompt, "--dataset", "synthderm")):
        done = cli(*words, *code)
        assert done.returncode == 2
        assert "--backbone 'local:PATH'" in done.stderr
        done = cli(*words, *code, "--backbone", f"local:{private}")
        assert done.returncode == 0, done.stderr
    other = tmp_path / "other.bin"
    other.write_text("other weights")
    done = cli("predict", prompt, image, *code, "--backbone", f"local:{other}")
    assert done.returncode == 2
    assert re.search(r"fingerprint .*[0-9a-f]{16}.* [0-9a-f]{16}", done.stderr)
