"""What a cell's method is given: its support set, validation and test images, and their views."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from vipbench.api import Labelled, Method, Recipe, Split, Support, Views
from vipbench.engine.features.cache import Item
from vipbench.engine.features.features import Features
from vipbench.engine.features.images import Drawn
from vipbench.engine.planning.cells import LoadedCell
from vipbench.engine.planning.protocols import home, test_rows, test_split
from vipbench.engine.planning.sampling import seeded_order
from vipbench.engine.training.optim import steps_per_epoch

# Test images that are held at once.
TEST_IMAGES = 256


def count_views(cell: LoadedCell, recipe: Recipe | None) -> int:
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


def encode_views(features: Features, cell: LoadedCell, recipe: Recipe | None) -> None:
    """Encode every training view that a cell uses."""
    if cell.row.method.inputs != "features" or cell.support is None or recipe is None:
        return
    if count := count_views(cell, recipe):
        rows = cell.support.train.tolist()
        features.prepare_views("train", rows, recipe.views, cell.seed, count)


def reads(cell: LoadedCell) -> Iterator[tuple[str, str, list[Item], Drawn]]:
    """The features that a cell is sure to read: dataset, split, items, and the views that they are
    of."""
    if cell.row.method.inputs != "features":
        return
    tested = test_rows(cell.tested)
    yield home(cell.tested), "test", [(row, 0) for row in tested], None
    if (views := test_views(cell)) is not None:
        items = [(row, view) for row in tested for view in range(views[0].count or 0)]
        yield home(cell.tested), "test", items, views
    if cell.support is None:
        return
    name, train, val = home(cell.data), cell.support.train.tolist(), cell.support.val
    if val is not None:
        yield name, "val", [(row, 0) for row in val.tolist()], None
    recipe = cell.hparams.recipe(cell.info)
    if recipe is not None and (count := count_views(cell, recipe)):
        items = [(row, view) for row in train for view in range(count)]
        yield name, "train", items, (recipe.views, cell.seed)
    else:
        yield name, "train", [(row, 0) for row in train], None


def may_read_plain(cell: LoadedCell) -> list[int]:
    """The support images whose evaluation view a cell may read beside the training views that it
    trains on; whether it does, only its method knows."""
    method = cell.row.method
    if cell.support is None or method.inputs != "features":
        return []
    own = any(
        getattr(method, name) is not getattr(Method, name) for name in ("prepare", "fit", "finish")
    )
    return cell.support.train.tolist() if own else []


def make_support(
    features: Features, cell: LoadedCell, recipe: Recipe | None, also: Collection[int] = ()
) -> Support | None:
    """The support set that a cell's method sees; None for zero-shot cells. also: training images
    whose evaluation view other cells will read if this one does."""
    if cell.support is None:
        return None
    train_split, rows = cell.data.splits["train"], cell.support.train.tolist()
    device = features.backbone.device
    images = cell.row.method.inputs == "images"
    count = count_views(cell, recipe)

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
    return _LaterSupport(
        lambda: _inputs(features, "train", rows, images, also),
        labels=_labels(train_split, rows).to(device),
        n_classes=cell.info.n_classes,
        shots=cell.shots,
        get_view=view if count else None,
        n_views=count,
        groups=None if groups is None else tuple(groups[i] for i in rows),
        val=val,
        best_val=val is not None and cell.protocol.selection == "best_val",
    )


class _LaterSupport(Support):
    """A support set whose `plain` is made when it is first asked for: images are megabytes each,
    and a training takes them batch by batch (see `image_batches`)."""

    _make: Callable[[], Tensor]

    def __init__(self, make: Callable[[], Tensor] | None = None, **fields: Any) -> None:
        for name, value in {"_make": make, **fields}.items():
            # As a frozen dataclass's own __init__ does.
            object.__setattr__(self, name, value)

    @cached_property
    def plain(self) -> Tensor:
        """(N,D) features or (N,3,H,H) images of the evaluation view."""
        return self._make()


def image_batches(
    features: Features, cell: LoadedCell, recipe: Recipe
) -> Callable[[Sequence[int], int | None], Tensor] | None:
    """Support images (n,3,H,H) by row and view (None: the evaluation view), made on demand; None
    for a method on features."""
    if cell.row.method.inputs != "images" or cell.support is None:
        return None
    train = cell.support.train.tolist()

    def take(rows: Sequence[int], view: int | None) -> Tensor:
        views = None if view is None else (recipe.views, cell.seed)
        return features.images("train", [(train[row], view or 0) for row in rows], views)

    return take


def _inputs(
    features: Features, split: str, rows: Sequence[int], images: bool, also: Collection[int] = ()
) -> Tensor:
    if images:
        return features.images(split, [(i, 0) for i in rows], None)
    return features.plain(split, rows, also)


def test_inputs(
    features: Features,
    method: type[Method],
    rows: Sequence[int],
    views: tuple[Views, int] | None,
) -> Iterator[Tensor]:
    """Features (N,D) of the test images `rows`, or the images (n,3,H,H) some at a time, as the
    method takes them; a transductive method gets all at once. views: of a method that needs
    "test_views", with the seed; it gets (N,1+V,D) or (n,1+V,3,H,H)."""
    n, count = len(rows), 0 if views is None else views[0].count or 0
    images = method.inputs == "images"
    some = max(1, TEST_IMAGES // (1 + count)) if images else n
    some = n if "test_images" in method.needs else some
    for start in range(0, n, some):
        part = rows[start : start + some]
        plain = _inputs(features, "test", part, images)
        if views is None:
            yield plain
        elif images:
            items = [(i, v) for i in part for v in range(count)]
            drawn = features.images("test", items, views).unflatten(0, (-1, count))
            yield torch.cat([plain.unsqueeze(1), drawn], dim=1)
        else:
            features.prepare_views("test", part, *views, count)
            found = [features.view("test", part, *views, v) for v in range(count)]
            yield torch.stack([plain, *found], dim=1)


def test_order(cell: LoadedCell) -> list[int]:
    """Places of the tested images in the order in which a transductive method sees them."""
    return seeded_order(test_split(cell.tested), cell.seed, "test order")


def test_views(cell: LoadedCell) -> tuple[Views, int] | None:
    """The views of the test images that a cell is scored on, with their seed; None for none."""
    if "test_views" not in cell.row.method.needs:
        return None
    return cell.hparams.test_views(), cell.seed


def _labels(split: Split, rows: Sequence[int]) -> Tensor:
    return torch.as_tensor(split.labels[list(rows)], dtype=torch.long)
