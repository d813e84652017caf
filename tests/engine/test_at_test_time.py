"""What methods get that see the whole test set, or several views of its images; how tables rank
them."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Cli
from vipbench.results import Store

PLUGIN = '''
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import vipbench
from vipbench import api


class Online(api.Method):
    """A running mean of what it saw of each class, one image after another."""

    name = "online"
    kind = "TF"
    needs = frozenset({"text", "test_images"})
    uses_support = False

    def forward(self, x):
        return self.task.cosine_logits(x, self.task.class_features())

    def predict(self, x):
        assert not torch.is_grad_enabled()
        centres, scores = self.task.class_features().clone(), []
        for image in F.normalize(x, dim=-1):
            logits = self.task.cosine_logits(image[None], centres)[0]
            scores.append(logits)
            best = int(logits.argmax())
            centres[best] = 0.5 * centres[best] + 0.5 * image
        return torch.stack(scores)


class Mean(api.Method):
    """Mean logits of several views; the first column tells how many."""

    name = "mean-view"
    kind = "TF"
    needs = frozenset({"text", "test_views"})
    uses_support = False

    @dataclass(frozen=True)
    class HParams(api.HParams):
        views: int = 3

        def test_views(self):
            return api.Views(count=self.views, scale=(0.5, 1.0))

    def forward(self, x):
        return self.task.cosine_logits(x, self.task.class_features())

    def predict(self, x):
        assert x.shape[1] == 1 + self.hparams.views
        return self(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)


class Spread(Mean):
    """How far apart the views of images are."""

    name = "spread"
    inputs = "images"

    def predict(self, x):
        assert x.dim() == 5
        apart = (x - x[:, :1]).abs().flatten(2).mean(2)
        return F.pad(apart, (0, self.task.n_classes - apart.shape[1]))


@vipbench.hookimpl
def register_methods(register):
    for method in (Online, Mean, Spread):
        register(method)
'''
METHODS = "zero-shot,online,mean-view,mean-view[views=0],spread"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twice the same images; in `turned` their files come in another order."""
    folder = tmp_path_factory.mktemp("test-time")
    (folder / "plugins").mkdir()
    (folder / "plugins" / "seeing.py").write_text(PLUGIN, encoding="utf-8")
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 1), ("test", 12)):
        for c, name in enumerate(("dark", "light")):
            (folder / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 150, (40, 40, 3)) + 50 * c
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(folder / "data" / split / name / f"{i:02}.png")
    shutil.copytree(folder / "data", folder / "turned")
    for name in ("dark", "light"):
        for i in range(12):
            place = folder / "turned" / "test" / name / f"{i:02}.png"
            place.rename(place.with_name(f"new-{11 - i:02}.png"))
    return folder


def run(cli: Cli, folder: Path, data: str) -> dict[tuple[str, int], np.ndarray]:
    """(method, seed) -> scores by the image's content."""
    done = cli(
        *("run", "--methods", METHODS, "--datasets", f"folder:{folder / data}", "--seeds", "1,2"),
        *("--backbones", "tiny-clip", "--plugins-dir", folder / "plugins", "--shots", "1"),
        *("--out", folder / f"out-{data}", "--views", "none"),
    )
    assert done.returncode == 0, done.stderr
    found = {}
    with Store(folder / f"out-{data}", readonly=True) as store:
        for record in store.records():
            assert record.ok, record.error
            predictions = store.predictions(record.key)
            assert predictions is not None
            files = [folder / data / name for name in predictions.ids]
            order = sorted(range(len(files)), key=lambda i: files[i].read_bytes())
            found[record.cell.method, record.cell.seed] = predictions.scores[order]
    return found


def test_at_test_time(cli: Cli, folder: Path) -> None:
    found, turned = run(cli, folder, "data"), run(cli, folder, "turned")
    online = [("online", 1), ("online", 2)]
    views = [("mean-view", 1), ("mean-view", 2), ("spread", 1), ("spread", 2)]
    assert set(found) == {("zero-shot", 0), *online, *views}
    for slot, scores in found.items():
        np.testing.assert_allclose(scores, turned[slot], atol=1e-4, err_msg=str(slot))
    for name in ("online", "mean-view", "spread"):
        assert not np.allclose(found[name, 1], found[name, 2], atol=1e-3)
    out = folder / "out-data"
    with Store(out, readonly=True) as store:
        by_name = {r.cell.method: r for r in store.records()}
    assert by_name["mean-view"].provenance["key_parts"]["test_views"]["count"] == 3
    assert any("3 views" in note for note in by_name["mean-view"].notes)
    lines = cli("table", out, "--format", "csv").stdout.splitlines()
    rows = [row for row in csv.DictReader(lines) if row["kind"] != "majority"]
    assert {row["method"]: row["kind"] for row in rows if row["state"] == "done"} == {
        "zero-shot": "method", "online": "transductive", "mean-view": "views", "spread": "views",
    }  # fmt: skip
    shown = cli("table", out).stdout
    assert "mean-view ‡" in shown
    assert "several views" in shown
    compared = cli("compare", "mean-view", "zero-shot,online", out, "--population", "images")
    output = compared.stdout + compared.stderr
    assert "several views" in output
    assert re.search("online .*all test images", output)
    why = cli("run", "--dry-run", "--methods", "mean-view[views=0]", "--datasets",
              f"folder:{folder / 'data'}", "--backbones", "tiny-clip", "--shots", "1",
              "--plugins-dir", folder / "plugins").stdout  # fmt: skip
    assert "count 0" in why
