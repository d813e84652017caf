"""Training of one or many cells of a method as one: torch.func over stacked parameters.

A cell's numbers do not depend on which cells it is stacked with: batch orders, noise and
initial values come from its own generators, a smaller batch is padded with rows of weight 0,
and a cell leaves the stack when its last step is done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vjp, vmap

from vipbench.api import Batch, Method
from vipbench.engine.optim import Optimizer, Tensors
from vipbench.engine.stacking import Schedule, TrainCell, pooled, schedule

# Validation accuracy enters a history so many times in a training: it is a forward pass more.
LOOKS = 10


def train(
    cells: Sequence[TrainCell], progress: Callable[[float], None] = lambda share: None
) -> None:
    """Train `cells` as one, in place: their methods end with the selected parameters.

    All cells are of one method and pass `can_stack` (a single cell always may be trained).
    progress: told after each step which share of the steps is done.
    """
    if not any(p.requires_grad for p in cells[0].method.parameters()):
        name = cells[0].method.name
        raise ValueError(f"method '{name}' gives a Recipe but has no parameter to train")
    stack = _Stack(cells)
    while stack.cells:
        stack.step()
        progress(stack.done / stack.steps)


class _Loss(nn.Module):
    # functional_call replaces the parameters for the length of a forward; the loss must be one.
    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(
        self, x: Tensor, labels: Tensor, weight: Tensor
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """The losses, and how many images of the batch the method's own forward had right: NaN
        where its loss does not call it on them."""
        seen: list[Tensor] = []
        hook = self.method.register_forward_hook(lambda _, __, logits: seen.append(logits))
        try:
            loss = self.method.loss(Batch(x, labels, weight))
        finally:
            hook.remove()
        right = torch.full_like(weight.sum(), math.nan)
        # The first call: some losses then ask for others, of other images or texts.
        if seen and seen[0].dim() == 2 and len(seen[0]) == len(labels):
            right = ((seen[0].detach().argmax(-1) == labels) & (weight > 0)).sum().to(right)
        return (loss if isinstance(loss, tuple) else (loss,)), right


class _Images:
    """The live cells' support images, one behind the other, each under its view of the moment.

    rows, labels, weight: (steps, cells, B) of all steps to come, rows counted through all cells.
    """

    def __init__(self, cells: Sequence[TrainCell], plans: Sequence[Schedule], start: int) -> None:
        self.plans, self.start = plans, start
        self.supports = supports = [pooled(cell) for cell in cells]
        device = supports[0].labels.device
        self.take = None if cells[0].recipe.pooled else cells[0].take
        self.offsets = [0]
        for support in supports:
            self.offsets.append(self.offsets[-1] + len(support.labels))
        if self.take is None:
            self.x = torch.cat([support.plain for support in supports])
        self.view = [-1] * len(cells)
        steps = min(len(plan.lr) for plan in plans) - start
        width = max(plan.rows.shape[1] for plan in plans)
        labels = torch.cat([support.labels for support in supports])
        rows = [_padded(plan.rows[start : start + steps], width, repeat=True) for plan in plans]
        moved = [r + offset for r, offset in zip(rows, self.offsets, strict=False)]
        weights = [_padded(plan.weight[start : start + steps], width) for plan in plans]
        self.rows = torch.stack(moved, dim=1).to(device)
        self.labels = labels[self.rows]
        self.weight = torch.stack(weights, dim=1).to(device)
        rates = [plan.lr[start : start + steps] for plan in plans]
        self.rates = torch.tensor(rates, dtype=torch.float32).T.contiguous().to(device)

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (cells,B,·), labels (cells,B), weight (cells,B), rate (cells,) of a step."""
        at = step - self.start
        if self.take is not None:
            n_views = self.supports[0].n_views
            view = self.plans[0].view[step] % n_views if n_views else None
            x = self.take(self.rows[at, 0].tolist(), view)[None]
            return x, self.labels[at], self.weight[at], self.rates[at]
        for i, (support, plan) in enumerate(zip(self.supports, self.plans, strict=True)):
            view = plan.view[step]
            if support.n_views and view != self.view[i]:
                self.view[i] = view
                self.x[self.offsets[i] : self.offsets[i + 1]] = support.view(view)
        return self.x[self.rows[at]], self.labels[at], self.weight[at], self.rates[at]


def _padded(table: Tensor, width: int, repeat: bool = False) -> Tensor:
    """(steps,b) -> (steps,width), the rest 0 or a repetition of a valid entry."""
    rest = table.new_zeros(len(table), width - table.shape[1])
    return torch.cat([table, rest + table[:, :1] if repeat else rest], dim=1)


class _Stack:
    """The cells still in training, and their stacked state."""

    def __init__(self, cells: Sequence[TrainCell]) -> None:
        self.cells = list(cells)
        self.plans = [schedule(cell) for cell in cells]
        self.steps = max(len(plan.lr) for plan in self.plans)
        self.done = 0
        self.loss = _Loss(cells[0].method)
        trained = [k for k, v in self.loss.named_parameters() if v.requires_grad]
        params, buffers = stack_module_state([_Loss(cell.method) for cell in cells])
        self.fixed: Tensors = {k: v.detach() for k, v in params.items() if k not in trained}
        self.params: Tensors = {k: params[k].detach() for k in trained}
        self.buffers: Tensors = dict(buffers)
        self.optimizer = Optimizer(cells[0].recipe)
        self.best: list[Tensors] = [{} for _ in cells]
        self.best_accuracy = [-1.0] * len(cells)
        self.average: list[Tensors] = [{} for _ in cells]
        self.noise_shapes = cells[0].method.noise()
        self.noise = [
            {name: cell.generator(f"noise/{name}") for name in self.noise_shapes} for cell in cells
        ]
        self.every: list[Tensor] = []  # (3, cells): loss, gradient norm, right of each step
        self.gradients = self._gradients(vectorised=len(cells) > 1)
        self.images = _Images(self.cells, self.plans, 0)

    def step(self) -> None:
        """One step of every live cell; cells whose last it was leave with their parameters."""
        x, labels, weight, rates = self.images.batch(self.done)
        self._refill()
        values, grads, right = self.gradients(
            self.params, self.fixed, self.buffers, x, labels, weight
        )
        self.done += 1
        self.params = self.optimizer.step(self.params, grads, rates, self.done)
        squares = [g.flatten(1).square().sum(1) for g in grads.values()]
        norm = torch.stack(squares).sum(0).sqrt()
        self.every.append(torch.stack([values.detach().float(), norm.float(), right.float()]))
        ending = [i for i, plan in enumerate(self.plans) if _ends_epoch(plan, self.done)]
        if ending:
            self._epoch_ends(ending)
        finished = [i for i, plan in enumerate(self.plans) if len(plan.lr) == self.done]
        if finished:
            self._retire(finished)

    def _gradients(self, vectorised: bool) -> Callable[..., tuple[Tensor, Tensors, Tensor]]:
        method = self.cells[0].method

        def one(
            params: Tensors, fixed: Tensors, buffers: Tensors, x: Tensor, y: Tensor, w: Tensor
        ) -> tuple[Tensor, Tensors, Tensor]:
            def losses(trained: Tensors) -> tuple[tuple[Tensor, ...], Tensor]:
                state = {**fixed, **buffers, **trained}
                out: Any = functional_call(self.loss, state, (x, y, w))
                return out[0], out[1]

            linear: Any = vjp(losses, params, has_aux=True)
            values, pull, right = linear
            ones = torch.ones_like(values[0])
            each: list[Tensors] = []
            for i in range(len(values)):
                chosen = tuple(
                    ones if j == i else torch.zeros_like(ones) for j in range(len(values))
                )
                each.append(pull(chosen, retain_graph=i + 1 < len(values))[0])
            if len(each) == 1:
                return values[0], each[0], right
            combined = {k: method.combine(tuple(g[k] for g in each)) for k in params}
            return torch.stack(values).sum(), combined, right

        if vectorised:
            return vmap(one, randomness="error")

        def alone(
            params: Tensors, fixed: Tensors, buffers: Tensors, x: Tensor, y: Tensor, w: Tensor
        ) -> tuple[Tensor, Tensors, Tensor]:
            p, f, b = ({k: v[0] for k, v in part.items()} for part in (params, fixed, buffers))
            value, grads, right = one(p, f, b, x[0], y[0], w[0])
            return value[None], {k: v[None] for k, v in grads.items()}, right[None]

        return alone

    def _refill(self) -> None:
        for name, shape in self.noise_shapes.items():
            draws = [torch.randn(*shape, generator=g[name]) for g in self.noise]
            key = f"method.{name}"
            self.buffers[key] = torch.stack(draws).to(self.buffers[key])

    def _epoch_ends(self, ending: Sequence[int]) -> None:
        for i in ending:
            cell, plan = self.cells[i], self.plans[i]
            epoch = (self.done - 1) // plan.per_epoch
            selects = cell.best_val and cell.support.val is not None
            epochs = math.ceil(len(plan.lr) / plan.per_epoch)
            look = (epoch + 1) * LOOKS // epochs != epoch * LOOKS // epochs
            entry = {"epoch": float(epoch)}
            if cell.support.val is not None and (selects or look):
                entry["val_accuracy"] = self._val_accuracy(i)
            if selects and entry["val_accuracy"] > self.best_accuracy[i]:
                self.best_accuracy[i] = entry["val_accuracy"]
                self.best[i] = self._state_of(i)
            if cell.recipe.epoch_weights is not None:
                weight = cell.recipe.epoch_weights[epoch] / math.fsum(cell.recipe.epoch_weights)
                for name, value in self._params_of(i).items():
                    self.average[i][name] = self.average[i].get(name, 0.0) + weight * value
            cell.history.append(entry)

    def _params_of(self, index: int) -> Tensors:
        return {name: value[index].clone() for name, value in self.params.items()}

    def _state_of(self, index: int) -> Tensors:
        """A cell's parameters and, where towers are trained, the statistics of their batch
        normalisations, which the passes write."""
        state = self._params_of(index)
        if self.cells[index].method.trains_towers:
            state |= {name: value[index].clone() for name, value in self.buffers.items()}
        return state

    def _val_accuracy(self, index: int) -> float:
        method, val = self.cells[index].method, self.cells[index].support.val
        assert val is not None
        parts = (self.fixed, self.buffers, self.params)
        state = {k.removeprefix("method."): v[index] for part in parts for k, v in part.items()}
        method.eval()
        with torch.no_grad():
            logits = torch.cat([functional_call(method, state, (x,)) for x in val.x.split(256)])
        method.train()
        return float((logits.argmax(-1) == val.labels).float().mean())

    def _retire(self, finished: Sequence[int]) -> None:
        """Give finished cells their parameters; go on with the rest."""
        every = torch.stack(self.every, dim=1).tolist()  # (3, steps, cells)
        self.every.clear()
        for i, cell in enumerate(self.cells):
            cell.losses += [values[i] for values in every[0]]
            cell.norms += [values[i] for values in every[1]]
            cell.right += [values[i] for values in every[2]]
        for i in finished:
            self._write_back(i)
        live = [i for i in range(len(self.cells)) if i not in finished]
        for name in ("cells", "plans", "best", "best_accuracy", "average", "noise"):
            setattr(self, name, [getattr(self, name)[i] for i in live])
        for state in (
            self.params, self.fixed, self.buffers, self.optimizer.first, self.optimizer.second
        ):  # fmt: skip
            for name, value in state.items():
                state[name] = value[live]
        if live:
            self.images = _Images(self.cells, self.plans, self.done)

    def _write_back(self, index: int) -> None:
        cell, plan = self.cells[index], self.plans[index]
        chosen = self._state_of(index)
        if cell.recipe.epoch_weights is not None:
            chosen = self.average[index]
        elif cell.best_val and self.best[index]:
            chosen = self.best[index]
        with torch.no_grad():
            for name, value in (*cell.method.named_parameters(), *cell.method.named_buffers()):
                if f"method.{name}" in chosen:
                    value.copy_(chosen[f"method.{name}"])
        for entry in cell.history:
            first = int(entry["epoch"]) * plan.per_epoch
            for name, values in (("loss", cell.losses), ("gradient_norm", cell.norms)):
                part = values[first : first + plan.per_epoch]
                entry[name] = math.fsum(part) / len(part)
            steps = slice(first, first + plan.per_epoch)
            right = math.fsum(cell.right[steps])
            if not math.isnan(right):
                entry["support_accuracy"] = right / float((plan.weight[steps] > 0).sum())


def _ends_epoch(plan: Schedule, done: int) -> bool:
    return done % plan.per_epoch == 0 or done == len(plan.lr)
