"""A cell to train, and which cells may train as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vipbench.api import Method, Recipe, Support, pads_batches
from vipbench.engine.training.optim import epoch_sizes

# Hyperparameters that reach a method only through its Recipe: cells that differ in these stack.
RECIPE_FIELDS = frozenset({"lr", "epochs", "iterations", "batch_size"})


@dataclass
class TrainCell:
    """One cell to train.

    best_val: keep the epoch with the best validation accuracy (the first of ties) instead of the
    last. generator: purpose -> Generator of this cell. losses, norms, right: filled with each
    step's loss, before its update, gradient norm, and images that it had right.
    history: filled with one entry an epoch.
    take: support images (n,3,H,H) by row and view (None: the evaluation view), where the method
    takes images: they are made when a batch needs them, never all at once.
    """

    method: Method
    recipe: Recipe
    support: Support
    generator: Callable[[str], torch.Generator]
    best_val: bool = False
    history: list[dict[str, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    right: list[float] = field(default_factory=list)
    take: Callable[[Sequence[int], int | None], Tensor] | None = None


def pool_size(cell: TrainCell) -> int:
    """How many images the cell's batches are drawn from."""
    views = cell.support.n_views if cell.recipe.pooled else 0
    return len(cell.support.labels) * max(1, views)


def batch_sizes(cell: TrainCell) -> tuple[int, ...]:
    """See `epoch_sizes`."""
    return epoch_sizes(cell.recipe, len(cell.support.labels), pool_size(cell))


def can_stack(cells: Sequence[TrainCell]) -> bool:
    """Whether these cells, all of one method, may train as one."""
    first = cells[0]
    method = type(first.method)
    # A tower's batch normalisation writes statistics in its pass.
    alone = not method.stackable or method.inputs != "features" or method.trains_towers
    if len(cells) == 1 or alone:
        return False
    return all(_alike(first, other) for other in cells[1:])


def _alike(a: TrainCell, b: TrainCell) -> bool:
    def rest(recipe: Recipe) -> Recipe:
        return dataclasses.replace(
            recipe, lr=0.0, epochs=1, iterations=None, batch_size=None, epoch_weights=None
        )

    if rest(a.recipe) != rest(b.recipe):
        return False
    if (a.recipe.epoch_weights is None) != (b.recipe.epoch_weights is None):
        return False
    if not pads_batches(type(a.method)) and batch_sizes(a) != batch_sizes(b):
        return False
    return same_state(a.method, b.method)


def same_state(a: Method, b: Method) -> bool:
    """Whether two methods differ only in the values of parameters and buffers."""
    for mine, other in (
        (a.named_parameters, b.named_parameters),
        (a.named_buffers, b.named_buffers),
    ):
        shapes = {k: (v.shape, v.dtype) for k, v in mine()}
        if shapes != {k: (v.shape, v.dtype) for k, v in other()}:
            return False
    return _same(_plain_state(a), _plain_state(b))


def _plain_state(module: nn.Module) -> dict[str, Any]:
    own = set(nn.Module().__dict__) | {"task"}
    state = {k: v for k, v in vars(module).items() if k not in own}
    return state | {name: _plain_state(child) for name, child in module.named_children()}


def _same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.shape == b.shape and bool(torch.equal(a, b))
    if dataclasses.is_dataclass(a):
        names = [f.name for f in dataclasses.fields(a) if f.name not in RECIPE_FIELDS]
        return all(_same(getattr(a, n), getattr(b, n)) for n in names)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a is b or a == b)


def partition(cells: Sequence[TrainCell]) -> list[list[TrainCell]]:
    """The fewest lists of cells that may each train as one."""
    parts: list[list[TrainCell]] = []
    for cell in cells:
        for part in parts:
            if can_stack([part[0], cell]):
                part.append(cell)
                break
        else:
            parts.append([cell])
    return parts
