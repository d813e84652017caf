"""Schedules and optimizers, elementwise over a leading dimension of cells.

The update rules are those of torch.optim's SGD, Adam and AdamW; a test holds them together.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vipbench.api import Recipe

Tensors = dict[str, Tensor]
# Types of devices.
WITHOUT_FLOAT64 = frozenset({"mps", "xpu"})


def steps_per_epoch(recipe: Recipe, n: int) -> int:
    """Batches of one epoch over n images."""
    batch = min(recipe.batch_size or n, n)
    return n // batch if recipe.drop_last else math.ceil(n / batch)


def epoch_sizes(recipe: Recipe, n: int, pool: int) -> tuple[int, ...]:
    """How many images each batch of an epoch holds: one number where all hold the same. pool: how
    many images batches are drawn from, n or those of all views."""
    batch = min(recipe.batch_size or pool, pool)
    places = range(0, batch * steps_per_epoch(recipe, n), batch)
    sizes = tuple(min(batch, pool - place) for place in places)
    return sizes[:1] if len(set(sizes)) == 1 else sizes


def total_steps(recipe: Recipe, n: int) -> int:
    """Steps of the whole training."""
    if recipe.iterations is not None:
        return recipe.iterations
    assert recipe.epochs is not None
    return recipe.epochs * steps_per_epoch(recipe, n)


def learning_rates(recipe: Recipe, n: int) -> list[float]:
    """The rate of each step. warmup-cosine is constant within an epoch, as Dassl's is."""
    steps, per_epoch = total_steps(recipe, n), steps_per_epoch(recipe, n)
    epochs = recipe.epochs or math.ceil(steps / per_epoch)
    rates = []
    for step in range(steps):
        if recipe.schedule == "constant":
            rates.append(recipe.lr)
        elif recipe.schedule == "cosine-step":
            share = 0.5 * (1 + math.cos(math.pi * step / steps))
            rates.append(recipe.min_lr + (recipe.lr - recipe.min_lr) * share)
        else:
            epoch = step // per_epoch
            cosine = recipe.lr * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / epochs))
            rates.append(recipe.warmup_lr if epoch == 0 else cosine)
    return rates


def corrections(recipe: Recipe, steps: int, device: torch.device) -> Tensor:
    """(steps,2) on the CPU, float64 where `device` has it, else float32: what Adam's first moment
    and the root of its second are divided by at each step, 1 - β₁ⁿ and √(1 - β₂ⁿ) of step number n
    from 1. A recorded step cannot count.
    """
    beta1, beta2 = recipe.betas
    numbers = range(1, steps + 1)
    table = [(1 - beta1**n, math.sqrt(1 - beta2**n)) for n in numbers]
    exact = torch.tensor(table, dtype=torch.float64)
    return exact.float() if device.type in WITHOUT_FLOAT64 else exact


class Optimizer:
    """State of one optimizer over stacked cells: each value is (cells, *parameter), written in
    place from step to step."""

    def __init__(self, recipe: Recipe, params: Tensors) -> None:
        self.recipe = recipe
        sgd = recipe.optimizer == "sgd"
        first, second = not sgd or bool(recipe.momentum), not sgd
        self.first = {k: torch.zeros_like(v) for k, v in params.items() if first}
        self.second = {k: torch.zeros_like(v) for k, v in params.items() if second}

    def step(self, params: Tensors, grads: Tensors, lr: Tensor, correction: Tensor) -> None:
        """Update `params` in place. lr: (cells,); correction: (2,), see `corrections`."""
        rule = self._sgd if self.recipe.optimizer == "sgd" else self._adam
        new = {}
        for name, value in params.items():
            rate = lr.reshape(-1, *[1] * (value.dim() - 1))
            new[name] = rule(name, value, grads[name], rate, correction)
        # Not before: a parameter's gradient may be another parameter itself.
        for name, value in params.items():
            value.copy_(new[name])

    def _sgd(self, name: str, value: Tensor, grad: Tensor, lr: Tensor, _: Tensor) -> Tensor:
        grad = grad + self.recipe.weight_decay * value
        if self.recipe.momentum:
            grad = self.first[name].mul_(self.recipe.momentum).add_(grad)
        return value - lr * grad

    def _adam(
        self, name: str, value: Tensor, grad: Tensor, lr: Tensor, correction: Tensor
    ) -> Tensor:
        recipe = self.recipe
        beta1, beta2 = recipe.betas
        if recipe.optimizer == "adamw":
            value = value * (1 - lr * recipe.weight_decay)
        else:
            grad = grad + recipe.weight_decay * value
        first = self.first[name].lerp_(grad, 1 - beta1)
        second = self.second[name].mul_(beta2).add_((1 - beta2) * grad * grad)
        denominator = second.sqrt() / correction[1] + recipe.eps
        return value - lr / correction[0] * first / denominator
