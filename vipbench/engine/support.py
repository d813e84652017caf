"""What a cell's method is given: its support set, validation and test images, and their views."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from vipbench.api import Labelled, Method, Recipe, Split, Support
from vipbench.engine.features import Features
from vipbench.engine.optim import steps_per_epoch
from vipbench.engine.planning import PlanCell


def _views(cell: PlanCell, recipe: Recipe | None) -> int:
    """How many training views this cell uses."""
    if recipe is None or cell.protocol.views == "none" or recipe.views.count == 0:
        return 0
    if isinstance(cell.protocol.views, int):
        return cell.protocol.views
    if recipe.views.count is not None:
        return recipe.views.count
    if recipe.epochs is not None:
        return recipe.epochs
    assert recipe.iterations is not None
    return math.ceil(recipe.iterations / steps_per_epoch(recipe, cell.info.n_support))


def encode_views(features: Features, cells: Sequence[PlanCell]) -> None:
    """Encode every training view that these cells of one method use."""
    if cells[0].row.method.inputs != "features":
        return
    for cell in cells:
        recipe = cell.hparams.recipe(cell.info) if cell.support is not None else None
        count = _views(cell, recipe)
        if count and recipe is not None and cell.support is not None:
            features.prepare_views(
                "train", cell.support.train.tolist(), recipe.views, cell.seed, count
            )


def make_support(features: Features, cell: PlanCell, recipe: Recipe | None) -> Support | None:
    """The support set that a cell's method sees; None for zero-shot cells."""
    if cell.support is None:
        return None
    train_split, rows = cell.data.splits["train"], cell.support.train.tolist()
    device = features.backbone.device
    images = cell.row.method.inputs == "images"
    count = _views(cell, recipe)

    @lru_cache(maxsize=1)
    def view(v: int) -> Tensor:
        assert recipe is not None
        if images:
            items = [(i, v) for i in rows]
            return features.images("train", items, (recipe.views, cell.seed))
        return features.view("train", rows, recipe.views, cell.seed, v)

    val = None
    if cell.support.val is not None:
        picked = cell.support.val.tolist()
        val = Labelled(
            _inputs(features, "val", picked, images),
            _labels(cell.data.splits["val"], picked).to(device),
        )
    groups = train_split.groups
    return Support(
        plain=_inputs(features, "train", rows, images),
        labels=_labels(train_split, rows).to(device),
        n_classes=cell.info.n_classes,
        shots=cell.shots,
        get_view=view if count else None,
        n_views=count,
        groups=None if groups is None else tuple(groups[i] for i in rows),
        val=val,
        best_val=val is not None and cell.protocol.selection == "best_val",
    )


def _inputs(features: Features, split: str, rows: Sequence[int], images: bool) -> Tensor:
    if images:
        return features.images(split, [(i, 0) for i in rows], None)
    return features.plain(split, rows)


def test_inputs(features: Features, method: type[Method]) -> Tensor:
    """Features (N,D) of the test images, or the images (N,3,H,H), as the method takes them."""
    rows = range(len(features.splits["test"]))
    return _inputs(features, "test", list(rows), method.inputs == "images")


def _labels(split: Split, rows: Sequence[int]) -> Tensor:
    return torch.as_tensor(split.labels[list(rows)], dtype=torch.long)
