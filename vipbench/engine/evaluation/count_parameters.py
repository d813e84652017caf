"""How many numbers a method trains, on the bundled backbone and data. For `list --verbose`."""

from __future__ import annotations

from vipbench.api import UnsupportedError
from vipbench.engine.evaluation.runner import GroupRunner
from vipbench.engine.features.features import Features
from vipbench.engine.planning.cells import make_rows, plan_cells
from vipbench.engine.planning.loading import Beside, load_backbone, load_dataset
from vipbench.engine.planning.protocols import Scene
from vipbench.plugins.registry import Registry
from vipbench.runspec.run import MethodSpec, RunSpec

BACKBONE, DATASET = "tiny-clip", "synthderm"


def trainable_counts(registry: Registry) -> dict[str, int | None]:
    """Method -> trainable parameters at one shot with tiny-clip on synthderm (6 classes); None
    where the method cannot run there or trains by a loop of its own."""
    spec = RunSpec.parse(
        {
            "datasets": [DATASET],
            "backbones": [BACKBONE],
            "shots": [1],
            "seeds": [1],
            "views": "none",
        }
    )
    data, backbone = load_dataset(registry, spec, DATASET), load_backbone(registry, BACKBONE)
    beside = Beside(registry, [backbone])
    features = Features(backbone.backbone, data.splits, data.fingerprint)
    runner = GroupRunner(features, lambda text: None)
    counts: dict[str, int | None] = {}
    for name in registry.methods:
        [row] = make_rows(registry, (MethodSpec(name=name),))
        [cell] = plan_cells(spec, row, Scene(data), backbone, beside)
        if cell.impossible is not None:
            counts[name] = None
            continue
        try:
            method = runner._prepare(cell, cell.hparams.recipe(cell.info)).method
        except (UnsupportedError, ValueError):
            counts[name] = None
            continue
        counts[name] = sum(p.numel() for p in method.parameters() if p.requires_grad)
    return counts
