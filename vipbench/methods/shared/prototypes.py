"""Class prototypes from texts and from images, shared by the methods on cached features."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vipbench import api

Templates = Literal["first", "all"]
# Types of devices.
WITHOUT_FLOAT64 = frozenset({"mps", "xpu"})


def unit_texts(task: api.Task, templates: Templates) -> Tensor:
    """Zero-shot weights (C,D) of unit length: of the dataset's first template, or the mean over
    all of them."""
    return task.class_features(task.templates if templates == "all" else task.templates[:1])


def raw_texts(task: api.Task, templates: Templates) -> Tensor:
    """Text features (C,D) as the tower gives them, not normalised; their mean over templates."""
    chosen = task.templates if templates == "all" else task.templates[:1]
    return torch.stack([task.text_features(task.class_texts(t)) for t in chosen]).mean(0)


def one_hot(labels: Tensor, n_classes: int, like: Tensor) -> Tensor:
    """(N,) -> (N,C) in the type of `like`."""
    return torch.nn.functional.one_hot(labels, n_classes).to(like)


def in_double(x: Tensor) -> Tensor:
    """`x` in double precision; on the CPU where its device has none."""
    return (x.cpu() if x.device.type in WITHOUT_FLOAT64 else x).double()


def views_of(support: api.Support, count: int, start: int = 0) -> list[Tensor]:
    """At most `count` different training views (N,D) from view `start` on; the evaluation view
    alone where the run has none or `count` is 0."""
    count = min(count, support.n_views)
    return [support.view(start + i) for i in range(count)] or [support.plain]
