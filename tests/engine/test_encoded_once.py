"""The image tower sees each (image, view) of a run once, in full batches."""

from __future__ import annotations

from pathlib import Path

import vipbench
from tests.conftest import Cli
from vipbench.engine.features.features import ENCODE_BATCH

COUNTED = '''
import hashlib
import os

import vipbench
from vipbench.backbones.open_clip import tiny_clip
from vipbench.methods.coop import CoOp


class Peek(CoOp):
    """CoOp that also looks at the evaluation view of its support images."""

    name = "peek"

    def prepare(self, support):
        self.centre = support.plain.mean(0)


@vipbench.hookimpl
def register_methods(register):
    register(Peek)


@vipbench.hookimpl
def register_backbones(register):
    def make(argument):
        backbone = tiny_clip(None)
        encode = backbone.encode_image

        def counted(pixels, tap=None):
            with open(os.environ["PASSES"], "a") as file:
                for image in pixels:
                    file.write(hashlib.sha256(image.numpy().tobytes()).hexdigest() + "\\n")
            return encode(pixels, tap)

        backbone.encode_image = counted
        return backbone

    register("counted", make, help="tiny-clip, counted")
'''


def test_a_run_encodes_what_its_cells_read_once(cli: Cli, tmp_path: Path) -> None:
    plugins, passes = tmp_path / "plugins", tmp_path / "passes"
    plugins.mkdir()
    (plugins / "counted.py").write_text(COUNTED)
    env = {"PASSES": str(passes), "VIPBENCH_CACHE": str(tmp_path / "features")}

    def run(methods: str) -> list[str]:
        passes.write_text("")
        done = cli(
            "run", "--plugins-dir", plugins, "--backbones", "counted", "--methods", methods,
            "--datasets", "synthderm", "--shots", "5", "--seeds", "1,2,3", "--out", "out", env=env,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return passes.read_text().split()

    # 300 test images, 90 support images under two views, at most 4 validation images a class and
    # seed. No evaluation view of the support images, which ViP does not read.
    seen = run("vip[epochs=2],coop[epochs=1]")
    assert 300 + 90 * 2 + 24 <= len(set(seen)) <= 300 + 90 * 2 + 3 * 24
    assert len(seen) == -len(set(seen)) // ENCODE_BATCH * -ENCODE_BATCH
    frame = vipbench.load_results(tmp_path / "cli" / "out")
    for timing in frame["timing"]:
        assert set(timing) == {"encode", "prepare", "train", "score"}
        assert timing["encode"] > 0
    # One cell that reads the evaluation view of its support images has those of all encoded.
    later = run("peek[epochs=1]")
    assert len(later) == 96
    assert len(set(later)) <= 90
