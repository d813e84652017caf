"""The schedule of a cell's batches, and writing stacked batches where the step reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vipbench.api import Support, pads_batches
from vipbench.engine.machine import sent
from vipbench.engine.training.optim import learning_rates, steps_per_epoch, total_steps
from vipbench.engine.training.stacking import TrainCell, batch_sizes, pool_size


@dataclass
class Schedule:
    """What a cell does at each step: rows (steps,B) into its support, weight (steps,B), images
    that are no padding, view and rate per step."""

    rows: Tensor
    weight: Tensor
    sizes: list[int]
    view: list[int]
    lr: list[float]
    per_epoch: int


def pooled(cell: TrainCell) -> Support:
    """The support set that batches are drawn from: all views as one, where the recipe says so."""
    support = cell.support
    if not cell.recipe.pooled or not support.n_views:
        return support
    views = [support.view(v) for v in range(support.n_views)]
    labels = support.labels.repeat(support.n_views)
    return dataclasses.replace(support, plain=torch.cat(views), labels=labels, n_views=0)


def schedule(cell: TrainCell) -> Schedule:
    """Batches, views and rates of the whole training, from the cell's own generator."""
    recipe, n = cell.recipe, len(cell.support.labels)
    steps, per_epoch = total_steps(recipe, n), steps_per_epoch(recipe, n)
    pool = pool_size(cell)
    batch = min(recipe.batch_size or pool, pool)
    order = cell.generator("batches")
    rows, weight = torch.zeros(steps, batch, dtype=torch.long), torch.zeros(steps, batch)
    sizes = batch_sizes(cell)
    view = []
    permutation = torch.arange(pool)
    for step in range(steps):
        epoch, place = divmod(step, per_epoch)
        if place == 0 and recipe.shuffle:
            permutation = torch.randperm(pool, generator=order)
        chosen = permutation[place * batch : (place + 1) * batch]
        rows[step, : len(chosen)] = chosen
        # Padding repeats a valid image, so that no method meets an invalid one.
        rows[step, len(chosen) :] = chosen[0]
        weight[step, : len(chosen)] = 1.0
        view.append(epoch)
    each = [sizes[step % len(sizes)] for step in range(steps)]
    return Schedule(rows, weight, each, view, learning_rates(recipe, n), per_epoch)


@dataclass(frozen=True)
class Inputs:
    """What differs from step to step: x (cells,B,·), labels (cells,B), weight (cells,B), rates
    (cells,). Each keeps its place and is written anew for every step."""

    x: Tensor
    labels: Tensor
    weight: Tensor
    rates: Tensor


class Batches:
    """The live cells' support images, one behind the other, each under its view of the moment.

    rows, labels, weight: (steps, cells, B) of all steps to come, rows counted through all cells.
    start: the step that comes first. even: whether all of these steps' batches have one shape.
    """

    def __init__(self, cells: Sequence[TrainCell], plans: Sequence[Schedule], start: int) -> None:
        self.plans, self.start = plans, start
        self.supports = supports = [pooled(cell) for cell in cells]
        device = supports[0].labels.device
        self.take = None if cells[0].recipe.pooled else cells[0].take
        self.offsets = [0]
        for support in supports:
            self.offsets.append(self.offsets[-1] + len(support.labels))
        # The evaluation view is not read, and so not encoded, where training views are.
        self.view = [plan.view[start] for plan in plans]
        firsts = zip(supports, self.view, strict=True)
        self.x = torch.cat([s.view(v) for s, v in firsts]) if self.take is None else None
        self.steps = steps = min(len(plan.lr) for plan in plans) - start
        width = max(plan.rows.shape[1] for plan in plans)
        labels = torch.cat([support.labels for support in supports])
        rows = [_padded(plan.rows[start : start + steps], width, repeat=True) for plan in plans]
        moved = [r + offset for r, offset in zip(rows, self.offsets, strict=False)]
        weights = [_padded(plan.weight[start : start + steps], width) for plan in plans]
        self.rows = sent(torch.stack(moved, dim=1), device)
        self.labels = labels[self.rows]
        self.weight = sent(torch.stack(weights, dim=1), device)
        rates = [plan.lr[start : start + steps] for plan in plans]
        self.rates = sent(torch.tensor(rates, dtype=torch.float32).T.contiguous(), device)
        # Cells of a method whose batches are not padded have batches of one size at each step.
        padded = pads_batches(type(cells[0].method))
        self.sizes = [width] * steps if padded else plans[0].sizes[start : start + steps]
        self.even = len(set(self.sizes)) == 1
        self._inputs: dict[int, Inputs] = {}

    def write(self, step: int) -> Inputs:
        """The inputs of `step`: for each size of batch always the same tensors, with other
        values."""
        at = step - self.start
        size = self.sizes[at]
        x = self._images(step, size)
        if size not in self._inputs:
            self._inputs[size] = Inputs(
                x.new_empty(len(self.plans), size, *x.shape[1:]),
                torch.empty_like(self.labels[0, :, :size]),
                torch.empty_like(self.weight[0, :, :size]),
                torch.empty_like(self.rates[0]),
            )
        into = self._inputs[size]
        if self.take is None:
            rows = self.rows[at, :, :size].flatten()
            torch.index_select(x, 0, rows, out=into.x.flatten(0, 1))
        else:
            into.x.copy_(x[None])
        into.labels.copy_(self.labels[at, :, :size])
        into.weight.copy_(self.weight[at, :, :size])
        into.rates.copy_(self.rates[at])
        return into

    def _images(self, step: int, size: int) -> Tensor:
        """All support images (n,·) as `step` sees them, or the images (size,·) of that step."""
        if self.take is not None:
            n_views = self.supports[0].n_views
            view = self.plans[0].view[step] % n_views if n_views else None
            return self.take(self.plans[0].rows[step, :size].tolist(), view)
        assert self.x is not None
        for i, (support, plan) in enumerate(zip(self.supports, self.plans, strict=True)):
            view = plan.view[step]
            if support.n_views and view != self.view[i]:
                self.view[i] = view
                self.x[self.offsets[i] : self.offsets[i + 1]] = support.view(view)
        return self.x


def _padded(table: Tensor, width: int, repeat: bool = False) -> Tensor:
    """(steps,b) -> (steps,width), the rest 0 or a repetition of a valid entry."""
    rest = table.new_zeros(len(table), width - table.shape[1])
    return torch.cat([table, rest + table[:, :1] if repeat else rest], dim=1)
