"""Training of one or many cells of a method as one: torch.func over stacked parameters.

A cell's numbers do not depend on which cells it is stacked with: batch orders, noise and
initial values come from its own generators, a smaller batch is padded with rows of weight 0 where
the method's loss respects them (`pads_batches`), and a cell leaves the stack when its last step is
done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from vipbench.api import pads_batches
from vipbench.engine.training.batches import Batches, Schedule, schedule
from vipbench.engine.training.cuda_graphs import Replays, Stretch
from vipbench.engine.training.optim import Tensors
from vipbench.engine.training.stacking import TrainCell
from vipbench.engine.training.step import Step

# Validation accuracy enters a history so many times in a training: it is a forward pass more.
LOOKS = 10


def train(
    cells: Sequence[TrainCell],
    progress: Callable[[float], None] = lambda share: None,
    replays: Replays | None = None,
) -> None:
    """Train `cells` as one, in place: their methods end with the selected parameters.

    All cells are of one method and pass `can_stack` (a single cell always may be trained).
    progress: called after each step with the share of the steps done. replays: records steps and
    repeats them, where there is a device that can; raises ReplayError where that went wrong, and
    the cells must then be made anew.
    """
    if not any(p.requires_grad for p in cells[0].method.parameters()):
        name = cells[0].method.name
        raise ValueError(f"method '{name}' gives a Recipe but has no parameters to train")
    stack = _Stack(cells, replays)
    try:
        while stack.cells:
            stack.step()
            progress(stack.done / stack.steps)
    finally:
        stack.close()


class _Stack:
    """The cells still in training, and their stacked state."""

    def __init__(self, cells: Sequence[TrainCell], replays: Replays | None) -> None:
        self.cells = list(cells)
        self.plans = [schedule(cell) for cell in cells]
        self.steps = max(len(plan.lr) for plan in self.plans)
        self.done = 0
        uneven = len({plan.rows.shape[1] for plan in self.plans}) > 1
        short = any(bool((plan.weight == 0).any()) for plan in self.plans)
        padded = pads_batches(type(cells[0].method)) and (uneven or short)
        self.state = Step(cells, self.steps, padded)
        self.best: list[Tensors] = [{} for _ in cells]
        self.best_accuracy = [-1.0] * len(cells)
        self.average: list[Tensors] = [{} for _ in cells]
        self.noise_shapes = cells[0].method.noise()
        self.noise = [
            {name: cell.generator(f"noise/{name}") for name in self.noise_shapes} for cell in cells
        ]
        self.every: list[Tensor] = []  # statistics of each step
        self.replays = replays
        self.batches = Batches(self.cells, self.plans, 0)
        self.run = self._runner()

    def step(self) -> None:
        """One step of every live cell; cells whose last it was leave with their parameters."""
        self.state.set(self.batches.write(self.done), self.done)
        for name, shape in self.noise_shapes.items():
            draws = [torch.randn(*shape, generator=g[name]) for g in self.noise]
            self.state.noise(name, draws)
        self.run()
        self.done += 1
        self.every.append(self.state.statistics.clone())
        ending = [i for i, plan in enumerate(self.plans) if _ends_epoch(plan, self.done)]
        if ending:
            self._epoch_ends(ending)
        finished = [i for i, plan in enumerate(self.plans) if len(plan.lr) == self.done]
        if finished:
            self._retire(finished)

    def close(self) -> None:
        """Let go of what the last steps were recorded in."""
        if isinstance(self.run, Stretch):
            self.run.close()

    def _runner(self) -> Callable[[], None]:
        """What does the steps until the next cell leaves."""
        if self.replays is None or not self.batches.even:
            return self.state
        return self.replays.stretch(self.state, self.cells[0].method, self.batches.steps)

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
                self.best[i] = self.state.state_of(i)
            if cell.recipe.epoch_weights is not None:
                weight = cell.recipe.epoch_weights[epoch] / math.fsum(cell.recipe.epoch_weights)
                for name, value in self._params_of(i).items():
                    self.average[i][name] = self.average[i].get(name, 0.0) + weight * value
            cell.history.append(entry)

    def _params_of(self, index: int) -> Tensors:
        return {name: value[index].clone() for name, value in self.state.params.items()}

    def _val_accuracy(self, index: int) -> float:
        method, val = self.cells[index].method, self.cells[index].support.val
        assert val is not None
        parts = (self.state.fixed, self.state.buffers, self.state.params)
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
        self.close()
        if live:
            self.state.keep(live)
            self.batches = Batches(self.cells, self.plans, self.done)
            self.run = self._runner()

    def _write_back(self, index: int) -> None:
        cell, plan = self.cells[index], self.plans[index]
        chosen = self.state.state_of(index)
        if cell.recipe.epoch_weights is not None:
            chosen |= self.average[index]
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
