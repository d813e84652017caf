"""The grid that is measured: one problem, its cells, and vipbench's run of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch

from vipbench.api import Backbone, Dataset, Split
from vipbench.backbones.towers.clip import ClipBackbone, clip_wordpieces
from vipbench.engine.evaluation.runner import GroupRunner
from vipbench.engine.evaluation.scoring import Finished
from vipbench.engine.features.features import Features
from vipbench.engine.planning.cells import LoadedCell, make_rows, plan_cells
from vipbench.engine.planning.loading import LoadedBackbone, LoadedDataset, sha
from vipbench.engine.planning.protocols import Scene
from vipbench.engine.training.cuda_graphs import replays
from vipbench.plugins.registry import Plugin, load_registry
from vipbench.runspec.run import RunSpec

SHOTS, SEEDS, EPOCHS, TEST = (1, 2, 4, 8, 16), (1, 2, 3), 50, 320
METHODS = ("coop", "cocoop", "vip")
# Our own texts, about as long as the ViP paper's for skin lesions.
SYMPTOMS = {
    "melanoma": (
        "one half of the mark does not mirror the other half",
        "the rim of the mark is notched and hard to follow",
        "shades of brown, black, grey, red and white lie side by side in it",
        "tiny dark specks are scattered inside",
    ),
    "nevus": (
        "both halves of the mark look the same",
        "the rim of the mark is even and easy to follow",
        "one shade of brown or tan fills the whole mark",
        "the skin around it is calm and pale",
    ),
}


class Noise(Dataset):
    """Random images, for time only."""

    name = "noise"
    class_names = tuple(SYMPTOMS)
    symptoms = SYMPTOMS

    def __init__(self, size: int) -> None:
        rng = np.random.default_rng(0)
        self._images = rng.integers(0, 256, (32 + TEST, size, size, 3), dtype=np.uint8)

    def load(self, root: Path | None) -> dict[str, Split]:
        """32 images to train on, TEST to test on; validation is not used."""
        parts = {"train": range(32), "val": range(2), "test": range(32, 32 + TEST)}
        return {
            name: Split(
                [self._images[i] for i in part],
                np.array([i % 2 for i in part]),
                tuple(f"{name}-{i}" for i in part),
            )
            for name, part in parts.items()
        }


# For rehearsals: CLIP's tokens and parts, small.
TOY = {
    "embed_dim": 64,
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2},
}


def make_backbone(arch: str) -> ClipBackbone:
    """`arch` of open_clip at its real size, or "toy", with random weights."""
    config = {**(TOY if arch == "toy" else open_clip.get_model_config(arch)), "quick_gelu": True}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if arch == "toy":
            model = open_clip.CLIP(**config)
        else:
            model = open_clip.create_model(arch, pretrained=None, force_quick_gelu=True)
    return ClipBackbone(model, name=arch, config=config, wordpieces=clip_wordpieces())


@dataclass
class Grid:
    """The problem, ready for both ways. features: as vipbench encoded them."""

    backbone: Backbone
    epochs: int = EPOCHS
    precision: str = "fp32"
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dataset = Noise(self.backbone.image_size)
        splits = self.dataset.load(None)
        plugin = Plugin("benchmark", None, Path(__file__), "", builtin=True)
        bound = tuple(SYMPTOMS.values())
        self.data = LoadedDataset(
            self.dataset, plugin, splits, "noise", bound, sha(bound), (), None
        )
        self.loaded = LoadedBackbone(self.backbone, plugin, self.backbone.name)
        self.features = Features(self.backbone, splits, "noise")
        self.replays = replays(self.backbone.device, _note)
        self.registry = load_registry()

    def spec(self, method: str) -> RunSpec:
        """The run of one method's 15 cells; no views, so that both ways see the same images."""
        settings = {"name": method, "epochs": self.epochs}
        return RunSpec.parse(
            {
                "methods": [settings],
                "datasets": ["noise"],
                "backbones": [self.backbone.name],
                "shots": list(SHOTS),
                "seeds": list(SEEDS),
                "views": "none",
                "validation": "none",
                "precision": self.precision,
            }
        )

    def cells(self, method: str) -> list[LoadedCell]:
        """The 15 cells of a method."""
        spec = self.spec(method)
        [row] = make_rows(self.registry, spec.methods)
        return plan_cells(spec, row, Scene(self.data), self.loaded)

    def encode(self) -> float:
        """Seconds to encode every image once."""
        start = time.perf_counter()
        self.features.plain("train", list(range(32)))
        self.features.plain("test", list(range(TEST)))
        return time.perf_counter() - start

    def run(self, method: str) -> tuple[float, list[Finished]]:
        """Seconds of a method's 15 cells through the engine, features apart, and the results."""
        runner = GroupRunner(self.features, _note, replays=self.replays)
        start = time.perf_counter()
        results = [*chain.from_iterable(runner.run(self.cells(method)))]
        return time.perf_counter() - start, results


def _note(text: str) -> None:
    print(f"note: {text}")


def cells_of(shots: tuple[int, ...] = SHOTS) -> Iterator[tuple[int, int]]:
    """(shots, seed) of the grid."""
    return ((k, seed) for k in shots for seed in SEEDS)


def peak_memory() -> float:
    """Peak resident memory of this process in GB."""
    import resource

    peak: Any = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak) / 1e6
