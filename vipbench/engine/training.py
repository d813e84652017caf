"""Training of one or many cells of a method as one: torch.func over stacked parameters.

A cell's numbers do not depend on which cells it is stacked with: batch orders, noise and
initial values come from its own generators, a smaller batch is padded with rows of weight 0,
and a finished cell is held.
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
from vipbench.engine.stacking import TrainCell, schedule


class _Loss(nn.Module):
    # functional_call replaces the parameters for the length of a forward; the loss must be one.
    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, x: Tensor, labels: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        loss = self.method.loss(Batch(x, labels, weight))
        return loss if isinstance(loss, tuple) else (loss,)


def train(
    cells: Sequence[TrainCell], progress: Callable[[float], None] = lambda share: None
) -> None:
    """Train `cells` as one, in place: their methods end with the selected parameters.

    All cells are of one method and pass `can_stack` (a single cell always may be trained).
    progress: told after each step which share of the steps is done.
    """
    _Stack(cells).run(progress)


class _Stack:
    """The stacked state of some cells and the loop over their steps."""

    def __init__(self, cells: Sequence[TrainCell]) -> None:
        self.cells = cells
        self.plans = [schedule(cell) for cell in cells]
        self.steps = max(len(plan.lr) for plan in self.plans)
        self.device = cells[0].support.plain.device
        self.loss = _Loss(cells[0].method)
        self.vectorised = len(cells) > 1
        losses = [_Loss(cell.method) for cell in cells]
        trained = [k for k, v in self.loss.named_parameters() if v.requires_grad]
        params, buffers = stack_module_state(losses)
        self.fixed: Tensors = {k: v.detach() for k, v in params.items() if k not in trained}
        self.params: Tensors = {k: params[k].detach() for k in trained}
        self.buffers: Tensors = dict(buffers)
        self.optimizer = Optimizer(cells[0].recipe)
        self.width = max(plan.rows.shape[1] for plan in self.plans)
        self.best: Tensors = {}
        self.best_accuracy = [-1.0] * len(cells)
        self.average: Tensors = {}
        self.noise_shapes = cells[0].method.noise()
        self.noise = [
            {name: cell.generator(f"noise/{name}") for name in self.noise_shapes} for cell in cells
        ]
        self.sums = [0.0] * len(cells)
        active = [[step < len(p.lr) for step in range(self.steps)] for p in self.plans]
        rates = [p.lr + [0.0] * (self.steps - len(p.lr)) for p in self.plans]
        self.active = torch.tensor(active, device=self.device)  # (cells, steps)
        self.rates = torch.tensor(rates, device=self.device, dtype=torch.float32)

    def run(self, progress: Callable[[float], None]) -> None:
        """All steps, then the selected parameters back into the methods."""
        if not self.params:
            raise ValueError(
                f"method '{self.cells[0].method.name}' gives a Recipe but has no parameter to train"
            )
        gradients = self._gradients()
        totals = torch.zeros(len(self.cells), device=self.device)
        every = []
        for step in range(self.steps):
            x, labels, weight = self._batch(step)
            self._refill()
            values, grads = gradients(self.params, self.fixed, self.buffers, x, labels, weight)
            self.params = self.optimizer.step(
                self.params, grads, self.rates[:, step], self.active[:, step], step + 1
            )
            every.append(values.detach())
            totals = totals + every[-1]
            totals = self._epoch_ends(step, totals)
            progress((step + 1) / self.steps)
        self._write_back()
        by_cell = torch.stack(every, dim=1).tolist()
        for cell, plan, losses in zip(self.cells, self.plans, by_cell, strict=True):
            cell.losses = losses[: len(plan.lr)]

    def _gradients(self) -> Callable[..., tuple[Tensor, Tensors]]:
        method = self.cells[0].method

        def one(
            params: Tensors, fixed: Tensors, buffers: Tensors, x: Tensor, y: Tensor, w: Tensor
        ) -> tuple[Tensor, Tensors]:
            def losses(trained: Tensors) -> tuple[Tensor, ...]:
                state = {**fixed, **buffers, **trained}
                out: tuple[Tensor, ...] = functional_call(self.loss, state, (x, y, w))
                return out

            linear: Any = vjp(losses, params)
            values, pull = linear
            ones = torch.ones_like(values[0])
            each: list[Tensors] = []
            for i in range(len(values)):
                chosen = tuple(
                    ones if j == i else torch.zeros_like(ones) for j in range(len(values))
                )
                each.append(pull(chosen, retain_graph=i + 1 < len(values))[0])
            if len(each) == 1:
                return values[0], each[0]
            combined = {k: method.combine(tuple(g[k] for g in each)) for k in params}
            return torch.stack(values).sum(), combined

        if self.vectorised:
            return vmap(one, randomness="error")

        def alone(
            params: Tensors, fixed: Tensors, buffers: Tensors, x: Tensor, y: Tensor, w: Tensor
        ) -> tuple[Tensor, Tensors]:
            p, f, b = ({k: v[0] for k, v in part.items()} for part in (params, fixed, buffers))
            value, grads = one(p, f, b, x[0], y[0], w[0])
            return value[None], {k: v[None] for k, v in grads.items()}

        return alone

    def _batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """x (cells,B,D), labels (cells,B), weight (cells,B); a finished cell repeats its last."""
        xs, ys, ws = [], [], []
        for cell, plan in zip(self.cells, self.plans, strict=True):
            at = min(step, len(plan.lr) - 1)
            rows, weight = plan.rows[at], plan.weight[at]
            short = self.width - len(rows)
            if short:
                rows = torch.cat([rows, rows[:1].expand(short)])
                weight = torch.cat([weight, weight.new_zeros(short)])
            rows = rows.to(self.device)
            xs.append(cell.support.view(plan.view[at])[rows])
            ys.append(cell.support.labels[rows])
            ws.append(weight)
        return torch.stack(xs), torch.stack(ys), torch.stack(ws).to(self.device)

    def _refill(self) -> None:
        for name, shape in self.noise_shapes.items():
            draws = [torch.randn(*shape, generator=g[name]) for g in self.noise]
            key = f"method.{name}"
            self.buffers[key] = torch.stack(draws).to(self.buffers[key])

    def _epoch_ends(self, step: int, totals: Tensor) -> Tensor:
        ending = [
            i
            for i, plan in enumerate(self.plans)
            if step < len(plan.lr)
            and ((step + 1) % plan.per_epoch == 0 or step + 1 == len(plan.lr))
        ]
        if not ending:
            return totals
        losses = totals.tolist()
        for i in ending:
            cell, plan = self.cells[i], self.plans[i]
            epoch = step // plan.per_epoch
            entry = {"epoch": float(epoch), "loss": losses[i] / (step % plan.per_epoch + 1)}
            if cell.best_val and cell.support.val is not None:
                entry["val_accuracy"] = accuracy = self._val_accuracy(i)
                if accuracy > self.best_accuracy[i]:
                    self.best_accuracy[i] = accuracy
                    self._keep(self.best, i)
            if cell.recipe.epoch_weights is not None:
                weight = cell.recipe.epoch_weights[epoch] / math.fsum(cell.recipe.epoch_weights)
                for name, value in self.params.items():
                    if name not in self.average:
                        self.average[name] = torch.zeros_like(value)
                    self.average[name][i] += weight * value[i]
            cell.history.append(entry)
        mask = torch.zeros_like(totals, dtype=torch.bool)
        mask[ending] = True
        return torch.where(mask, torch.zeros_like(totals), totals)

    def _keep(self, store: Tensors, index: int) -> None:
        for name, value in self.params.items():
            if name not in store:
                store[name] = value.clone()
            store[name][index] = value[index]

    def _state_of(self, index: int, params: Tensors) -> Tensors:
        return {k: v[index] for part in (self.fixed, self.buffers, params) for k, v in part.items()}

    def _val_accuracy(self, index: int) -> float:
        val = self.cells[index].support.val
        assert val is not None
        state = self._state_of(index, self.params)
        method = self.cells[index].method
        names = {k.removeprefix("method."): v for k, v in state.items()}
        method.eval()
        with torch.no_grad():
            logits = torch.cat([functional_call(method, names, (x,)) for x in val.x.split(256)])
        method.train()
        return float((logits.argmax(-1) == val.labels).float().mean())

    def _write_back(self) -> None:
        with torch.no_grad():
            for i, cell in enumerate(self.cells):
                chosen = self.params
                if cell.recipe.epoch_weights is not None:
                    chosen = self.average
                elif cell.best_val and self.best:
                    chosen = self.best
                for name, value in cell.method.named_parameters():
                    key = f"method.{name}"
                    if key in chosen:
                        value.copy_(chosen[key][i])
