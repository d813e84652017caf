"""A prompt file's method on the classes of another dataset."""

from __future__ import annotations

import dataclasses

from vipbench.api import Method, Task
from vipbench.engine.learned import fill
from vipbench.engine.loading import LoadedDataset
from vipbench.engine.planning import impossible_pair
from vipbench.engine.trained import Trained
from vipbench.engine.transfer import cannot_transfer
from vipbench.errors import UsageError


def elsewhere(trained: Trained, data: LoadedDataset) -> Trained:
    """`trained` for the classes of `data`: the method built anew on their names and texts, with
    what was learned put in. Raises UsageError, with the reason, where something that was learned
    belongs to the classes that it was trained on, or where `data` lacks texts that the method
    reads."""
    method = trained.method
    kind, task = type(method), method.task
    names = data.dataset.class_names

    def make(given: Task) -> Method:
        return kind(given, method.hparams).to(given.device)

    reason = impossible_pair(kind, task.backbone, data)
    reason = reason or cannot_transfer(kind, method.hparams, task.info, task, make)
    if reason is None:
        info = dataclasses.replace(task.info, n_classes=len(names), dataset=data.dataset.name)
        there = dataclasses.replace(
            task,
            class_names=names,
            templates=data.dataset.templates,
            symptoms=data.symptoms,
            descriptions=data.descriptions,
            info=info,
        )
        fresh = make(there)
        held = {**dict(fresh.named_parameters()), **dict(fresh.named_buffers())}
        for name, value in trained.tensors.items():
            if name not in held or held[name].shape != value.shape:
                reason = f"'{method.name}' learned '{name}' of shape {tuple(value.shape)} for them"
                break
    if reason is not None:
        raise UsageError(
            f"the classes of '{data.dataset.name}' ({', '.join(names)}) are not those of the "
            f"prompt file ({', '.join(trained.class_names)}), and {reason}; classes are matched "
            "by name"
        )
    fill(fresh, trained.tensors)
    return dataclasses.replace(trained, method=fresh, class_names=names)
