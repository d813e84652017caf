"""Schedules and optimizers, elementwise over a leading dimension of cells.

The update rules are those of torch.optim's SGD, Adam and AdamW; a test holds them together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vipbench.api import Recipe

Tensors = dict[str, Tensor]


def steps_per_epoch(recipe: Recipe, n: int) -> int:
    """Batches of one epoch over n images."""
    batch = min(recipe.batch_size or n, n)
    return n // batch if recipe.drop_last else math.ceil(n / batch)


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


@dataclass
class Optimizer:
    """State of one optimizer over stacked cells: each value is (cells, *parameter)."""

    recipe: Recipe
    first: Tensors = field(default_factory=dict)
    second: Tensors = field(default_factory=dict)

    def step(self, params: Tensors, grads: Tensors, lr: Tensor, number: int) -> Tensors:
        """New parameters. lr: (cells,); number: of this step, from 1."""
        rule = self._sgd if self.recipe.optimizer == "sgd" else self._adam
        new = {}
        for name, value in params.items():
            rate = lr.reshape(-1, *[1] * (value.dim() - 1))
            new[name] = rule(name, value, grads[name], rate, number)
        return new

    def _sgd(self, name: str, value: Tensor, grad: Tensor, lr: Tensor, number: int) -> Tensor:
        recipe = self.recipe
        grad = grad + recipe.weight_decay * value
        if recipe.momentum:
            before = self.first.get(name)
            grad = grad if before is None else before * recipe.momentum + grad
            self.first[name] = grad
        return value - lr * grad

    def _adam(self, name: str, value: Tensor, grad: Tensor, lr: Tensor, number: int) -> Tensor:
        recipe = self.recipe
        beta1, beta2 = recipe.betas
        if recipe.optimizer == "adamw":
            value = value * (1 - lr * recipe.weight_decay)
        else:
            grad = grad + recipe.weight_decay * value
        zeros = torch.zeros_like(value)
        self.first[name] = first = self.first.get(name, zeros).lerp(grad, 1 - beta1)
        second = self.second.get(name, zeros) * beta2 + (1 - beta2) * grad * grad
        self.second[name] = second
        denominator = second.sqrt() / math.sqrt(1 - beta2**number) + recipe.eps
        return value - lr / (1 - beta1**number) * first / denominator
