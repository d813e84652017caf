"""A toy task of images: classes are colours; small enough that a tower can be trained on it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from vipbench import api
from vipbench.engine.seeding import cell_generator
from vipbench.engine.training.stacking import TrainCell
from vipbench.engine.training.trainer import train

NAMES = ("red_spot", "green_spot", "blue_spot")


def toy_images(per_class: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x (N,3,size,size), labels (N,): a class has more of its colour."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat(per_class)
    x = torch.randn(len(labels), 3, size, size, generator=generator) * 0.5
    x[torch.arange(len(labels)), labels] += 1.0
    return x, labels


def toy_task(backbone: api.ImageBackbone, shots: int | None = 4, seed: int = 1) -> api.Task:
    info = api.CellInfo(
        shots=shots,
        n_support=12,
        n_classes=3,
        backbone=backbone.name,
        dim=backbone.dim,
        width=backbone.width if isinstance(backbone, api.Backbone) else 0,
        dataset="toy",
    )
    templates = ("a picture of a {}.", "this is a {}.")
    return api.Task(backbone, NAMES, templates, None, info, cell_generator("toy", shots, seed))


def make(
    method: type[api.Method], backbone: api.ImageBackbone, seed: int = 1, **hparams: Any
) -> Any:
    """The method for the toy task; `hparams` over the paper's."""
    task = toy_task(backbone, seed=seed)
    return method(task, method.HParams(**hparams).for_cell(task.info))


def fit(method: Any, **recipe: Any) -> list[float]:
    """Train on four images a class; the losses of the steps."""
    chosen = method.hparams.recipe(method.task.info)
    if "epochs" in recipe and chosen.epoch_weights is not None:
        recipe["epoch_weights"] = (1.0,) * recipe["epochs"]
    chosen = dataclasses.replace(chosen, **recipe)
    for name, shape in method.noise().items():
        setattr(method, name, torch.zeros(shape))
    x, labels = toy_images(4, method.task.image_backbone.image_size)
    support = api.Support(x, labels, 3, 4)
    cell = TrainCell(method, chosen, support, method.task.generator)
    method.train()
    train([cell])
    method.eval()
    return cell.losses


@torch.no_grad()
def scores(method: Any, per_class: int = 30) -> tuple[Tensor, Tensor]:
    """Scores (N,C) and labels (N,) of images that were not trained on."""
    x, labels = toy_images(per_class, method.task.image_backbone.image_size, seed=9)
    method.eval()
    return method.predict(x), labels
