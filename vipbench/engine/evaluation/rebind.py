"""A trained method for other classes: rebuilt on their texts, with the learned parameters.

The parameters apply to other classes if none of them belongs to a single class: context vectors, a
network on image features, low-rank updates. Weights, keys or residuals of each class do not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor

from vipbench.api import CellInfo, HParams, Method, Task, has_own_fit
from vipbench.engine.evaluation.learned import Versions, fill, learned_tensors

Make = Callable[[Task], Method]


def cannot_transfer(
    method: type[Method], hparams: HParams, info: CellInfo, task: Task, make: Make
) -> str | None:
    """Why the parameters of `method` apply only to the classes that it was trained on, or None.

    Found without training: by what the method overrides, and by which of its parameters change
    their shape with the number of classes. `Method.transfers` decides where it is not None.
    """
    if method.transfers is not None or not method.uses_support:
        reason = f"'{method.name}' states that its parameters apply to no other classes"
        return reason if method.transfers is False else None
    for own, what in (
        (has_own_fit(method), "is fitted to the classes that it is trained on"),
        (method.prepare is not Method.prepare, "computes from images of each class"),
        (method.finish is not Method.finish, "is adjusted to the classes that it is trained on"),
    ):
        if own:
            return f"'{method.name}' {what}, and cannot be tested on others"
    if hparams.recipe(info) is None:
        return None
    here, there = _shapes(make(task)), _shapes(make(_with_extra_class(task)))
    for name, shape in here.items():
        if there.get(name) != shape:
            return (
                f"'{method.name}' learns '{name}' for each class that it is trained on, and cannot "
                "be tested on others"
            )
    return None


def transferred(method: Method, built: Versions, task: Task, make: Make) -> Method:
    """`method` for the classes of `task`, with what it learned since `built` was taken. Raises
    ValueError where something that it learned has another shape there."""
    tensors = learned_tensors(method, built)
    fresh = make(task)
    held = {**dict(fresh.named_parameters()), **dict(fresh.named_buffers())}
    for name, value in tensors.items():
        if name in held and held[name].shape != value.shape:
            raise ValueError(
                f"'{method.name}' learned '{name}' of shape {tuple(value.shape)}; for other "
                f"classes the shape is {tuple(held[name].shape)}"
            )
    fill(fresh, tensors)
    return fresh


def _shapes(method: Method) -> dict[str, tuple[int, ...]]:
    return {n: tuple(p.shape) for n, p in method.named_parameters() if p.requires_grad}


def _with_extra_class(task: Task) -> Task:
    """The same problem with its first class twice: only the number of classes differs."""

    def more(texts: tuple[tuple[str, ...], ...] | None) -> tuple[tuple[str, ...], ...] | None:
        return None if texts is None else (*texts, texts[0])

    names = (*task.class_names, task.class_names[0])
    return dataclasses.replace(
        task,
        class_names=names,
        symptoms=more(task.symptoms),
        descriptions=more(task.descriptions),
        info=dataclasses.replace(task.info, n_classes=len(names)),
    )


def best_of(scores: Tensor, columns: tuple[tuple[int, ...], ...]) -> Tensor:
    """(N,C) -> (N,len(columns)): of each entry's columns the highest score."""
    import torch

    return torch.stack([scores[:, list(own)].amax(1) for own in columns], dim=1)
