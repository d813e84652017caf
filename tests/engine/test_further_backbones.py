"""Methods that read the features of several backbones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Cli
from vipbench.results import Store

PLUGIN = '''
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

import vipbench
from vipbench import api


class Linear(api.Method):
    """A linear layer on all features."""

    name = "linear"
    kind = "AD"
    needs = frozenset()

    @dataclass(frozen=True)
    class HParams(api.HParams):
        beside: str = ""

        def backbones(self):
            return tuple(self.beside.split("+")) if self.beside else ()

        def recipe(self, info):
            return api.Recipe(lr=0.1, epochs=3)

    def __init__(self, task, hparams):
        super().__init__(task, hparams)
        width = sum(task.dims)
        self.weight = nn.Parameter(task.normal("weight", task.n_classes, width))
        self.first = torch.zeros(task.n_classes, task.dims[0])

    def prepare(self, support):
        parts = support.plain.split(self.task.dims, -1)
        assert [part.shape[1] for part in parts] == list(self.task.dims)
        self.first = self.first + parts[0].mean(0)

    def forward(self, x):
        assert x.shape[-1] == sum(self.task.dims)
        return F.normalize(x, dim=-1) @ self.weight.T


class Near(Linear):
    """Nearest class mean of the last backbone's features."""

    name = "near"

    @dataclass(frozen=True)
    class HParams(Linear.HParams):
        def recipe(self, info):
            return None

    def prepare(self, support):
        x = F.normalize(support.plain.split(self.task.dims, -1)[-1], dim=-1)
        self.means = torch.stack([x[support.labels == c].mean(0)
                                  for c in range(self.task.n_classes)])

    def forward(self, x):
        return F.normalize(x.split(self.task.dims, -1)[-1], dim=-1) @ self.means.T


class Thumbnail(api.ImageBackbone):
    """Pixels."""

    vision_width, vision_layers = None, 0
    device = torch.device("cpu")

    def __init__(self, argument):
        self.image_size = int(argument or 4)
        self.name = f"thumbnail-{self.image_size}"
        self.fingerprint = f"thumbnail-{self.image_size}"
        self.dim = 3 * self.image_size**2

    def to(self, device):
        self.device = torch.device(device)

    def preprocess(self, image):
        small = image.resize((self.image_size, self.image_size))
        values = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).float()
        return values.reshape(self.image_size, self.image_size, 3).permute(2, 0, 1) / 127.5 - 1

    def encode_image(self, pixels, tap=None):
        return pixels.flatten(1)

    def trainable_copy(self, pretrained=True):
        return nn.Flatten()


@vipbench.hookimpl
def register_methods(register):
    register(Linear)
    register(Near)


@vipbench.hookimpl
def register_backbones(register):
    register("thumbnail", Thumbnail)
'''


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("further") / "plugins"
    folder.mkdir()
    (folder / "further.py").write_text(PLUGIN, encoding="utf-8")
    return folder


METHODS = (
    "linear,linear[beside=thumbnail:4],linear[beside=thumbnail:4+thumbnail:6],"
    "near,near[beside=thumbnail:4],linear[beside=thumbnial]"
)


def test_features_side_by_side(cli: Cli, plugins: Path, tmp_path: Path) -> None:
    common = ("--datasets", "synthderm", "--shots", "2", "--seeds", "1", "--plugins-dir", plugins)
    done = cli(
        "run", "--methods", METHODS, "--backbones", "tiny-clip", *common, "--out", tmp_path / "a"
    )
    assert done.returncode == 0, done.stderr
    alone = cli(
        "run", "--methods", "near", "--backbones", "thumbnail:4", *common, "--out", tmp_path / "b"
    )
    assert alone.returncode == 0, alone.stderr
    with (
        Store(tmp_path / "a", readonly=True) as store,
        Store(tmp_path / "b", readonly=True) as other,
    ):
        found = {r.cell.method: r for r in store.records()}
        assert len(found) == 5, [r.error for r in store.records() if not r.ok]
        assert all(r.ok for r in found.values()), [r.error for r in found.values() if not r.ok]
        # It reads the last backbone's features alone, and so gives that backbone's numbers.
        mine = store.predictions(found["near[beside=thumbnail:4]"].key)
        theirs = other.predictions(other.records()[0].key)
        assert mine is not None
        assert theirs is not None
        np.testing.assert_allclose(mine.scores, theirs.scores, atol=1e-6)
    both = found["linear[beside=thumbnail:4+thumbnail:6]"].provenance
    assert [one["name"] for one in both["backbones"]] == ["thumbnail-4", "thumbnail-6"]
    prints = [one["fingerprint"] for one in both["backbones"]]
    assert both["key_parts"]["backbones"] == prints
    assert both["backbone"]["name"] == "tiny-clip"
    assert "backbones" not in found["linear"].provenance["key_parts"]
    cited = cli("cite", tmp_path / "a").stdout
    assert "thumbnail-6" in cited
    plan = cli("run", "--dry-run", "--methods", METHODS, "--backbones", "tiny-clip", *common)
    assert "thumbnial" in plan.stdout
    assert "thumbnail" in plan.stdout
