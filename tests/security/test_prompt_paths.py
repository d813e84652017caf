"""A prompt file does not say where its maker keeps weights, and is usable with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vipbench
from tests.conftest import Cli
from vipbench.engine.explain.exported import export
from vipbench.errors import UsageError

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
    vipbench.run(
        "ncm", "synthderm", f"local:{private}", shots=1, seeds=1, out=tmp_path / "run", quiet=True,
        views="none", validation="none", plugins_dir=plugins,
    )  # fmt: skip
    export(tmp_path / "run", tmp_path / "out", patient_data=True)
    made = list((tmp_path / "out").iterdir())
    assert len(made) == 3
    for file in made:
        assert str(tmp_path).encode() not in file.read_bytes()
        assert b"ward-seven" not in file.read_bytes()
        assert b"local:PATH" in file.read_bytes() or file.suffix == ".csv"
    (prompt,) = (file for file in made if file.suffix == ".safetensors")
    with pytest.raises(UsageError, match="--backbone 'local:PATH'"):
        vipbench.load_model(prompt, plugins_dir=plugins)
    image, other = tmp_path / "a.png", tmp_path / "other.bin"
    Image.fromarray(np.full((28, 28), 230, np.uint8)).save(image)
    code = ("--plugins-dir", plugins, "--backbone", f"local:{private}")
    done = cli("predict", prompt, image, *code)
    assert done.returncode == 0, done.stderr
    assert str(image) in done.stdout
    other.write_text("other weights")
    with pytest.raises(UsageError, match=r"fingerprint is [0-9a-f]{16}, not [0-9a-f]{16}"):
        vipbench.load_model(prompt, f"local:{other}", plugins)
