"""What a method may not write in a training step, and what `after_step` may not give."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.engine.test_training import CLASSES, DIM, Toy, cell
from vipbench import api
from vipbench.engine.training.stacking import can_stack
from vipbench.engine.training.trainer import train
from vipbench.engine.training.written import WrittenStateError

RECIPE = api.Recipe(epochs=3, batch_size=4)


class Child(nn.Module):
    """A module of the method's."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer("bank", torch.zeros(4, DIM))


class Helper:
    """An object of the plugin's."""

    calls = 0


class Slots:
    """An object without a dict."""

    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = 0


def ticker() -> Callable[[], None]:
    """It counts in a closure."""
    calls = [0]

    def tick() -> None:
        calls[0] += 1

    return tick


def remembers(batch: api.Batch, seen: list[Any] = []) -> None:  # noqa: B006  # on purpose
    """It keeps what it was given."""
    seen.append(batch)


@dataclass(frozen=True)
class Problem:
    """In a task's place."""

    n_classes: int = CLASSES


# Of one cell as of another, so that cells stack.
COUNTER = itertools.count()
NAN, HELPER, ARRAY = float("nan"), Helper(), np.zeros(3)
SLOTS, TICK, HIDDEN, PROBLEM = Slots(), ticker(), nn.BatchNorm1d(DIM, affine=False), Problem()
calls = 0
seen_labels: dict[str, list[int]] = {"steps": []}


class Writes(Toy):
    """Its loss does `how` with itself and the batch."""

    name = "writes"
    how: Callable[[Any, api.Batch], Any]
    total = 0

    def __init__(self, generator: torch.Generator, hparams: Toy.HParams) -> None:
        super().__init__(generator, hparams)
        self.steps = 0
        self.nan, self.counter = NAN, COUNTER
        self.cache: dict[str, Any] = {"rows": []}
        self.seen: list[Tensor] = []
        self.array = ARRAY
        self.space = SimpleNamespace(calls=0)
        self.helper = HELPER
        self.teacher = torch.zeros(CLASSES, DIM)
        self.var = torch.ones(DIM)
        self.mean = torch.zeros(DIM)
        self.frozen = nn.Parameter(torch.zeros(DIM), requires_grad=False)
        self.child = Child()
        self.slots, self.tick, self.hidden = SLOTS, TICK, [HIDDEN]
        self.task = PROBLEM  # type: ignore[assignment]
        self.layer = nn.InstanceNorm1d(DIM, track_running_stats=True)

    def loss(self, batch: api.Batch) -> tuple[Tensor, ...]:
        type(self).how(self, batch)
        return super().loss(batch)


def counts(method: Any, batch: api.Batch) -> None:
    method.steps = method.steps + 1


def counts_on_its_class(method: Any, batch: api.Batch) -> None:
    type(method).total += 1


def teaches(method: Any, batch: api.Batch) -> None:
    method.teacher = 0.9 * method.teacher + 0.1 * method.weight.detach()


def teaches_in_place(method: Any, batch: api.Batch) -> None:
    with torch.no_grad():
        method.teacher.mul_(0.9).add_(method.weight, alpha=0.1)


def writes_rows(method: Any, batch: api.Batch) -> None:
    method.child.bank[:2] = batch.x[:2]


def normalises(method: Any, batch: api.Batch) -> None:
    F.batch_norm(batch.x, method.mean, method.var, training=True)


def counts_in_an_object(method: Any, batch: api.Batch) -> None:
    method.helper.calls += 1


def counts_in_a_space(method: Any, batch: api.Batch) -> None:
    method.space.calls += 1


def counts_in_a_child(method: Any, batch: api.Batch) -> None:
    method.child.calls += 1


def fills_an_array(method: Any, batch: api.Batch) -> None:
    method.array[0] += 1


def counts_in_the_module(method: Any, batch: api.Batch) -> None:
    global calls
    calls += 1


def stays_in_evaluation(method: Any, batch: api.Batch) -> None:
    method.eval()


WRITERS = [
    (counts, "self.steps"),
    (counts_on_its_class, ".total"),
    (teaches, "self.teacher"),
    (teaches_in_place, "self.teacher"),
    (lambda m, b: m.teacher.data.add_(1.0), "self.teacher"),
    (lambda m, b: m.frozen.data.add_(1.0), "self.frozen"),
    (writes_rows, "self.child.bank"),
    (lambda m, b: setattr(m.child, "bank", m.child.bank + 1), "self.child.bank"),
    (counts_in_a_child, "self.child.calls"),
    (lambda m, b: m.seen.append(b.x), "self.seen"),
    (lambda m, b: m.cache["rows"].append(1), "self.cache"),
    (lambda m, b: m.cache.update(mean=b.x.mean(0)), "self.cache"),
    (lambda m, b: setattr(m, "last", b.x), "self.last"),
    (lambda m, b: m.register_buffer("made", torch.zeros(2)), "self.made"),
    (lambda m, b: delattr(m, "array"), "self.array"),
    (counts_in_an_object, "self.helper"),
    (counts_in_the_module, "test_written.py: calls"),
    (lambda m, b: seen_labels["steps"].append(1), "test_written.py: seen_labels"),
    (counts_in_a_space, "self.space"),
    (lambda m, b: next(m.counter), "self.counter"),
    (fills_an_array, "self.array"),
    (lambda m, b: m.shake.zero_(), "self.shake"),
    (lambda m, b: m.layer(b.x[:, :, None].expand(-1, -1, 3)), "self.layer.running_mean"),
    (normalises, "self.mean"),
    (stays_in_evaluation, "self.training"),
    (lambda m, b: setattr(m.weight, "data", m.weight.data * 0.9), "self.weight"),
    (lambda m, b: m.weight.set_(m.weight.detach() * 0.9), "self.weight"),
    (lambda m, b: setattr(m.child.bank, "data", m.child.bank + 1), "self.child.bank"),
    (lambda m, b: setattr(m.slots, "calls", m.slots.calls + 1), "self.slots"),
    (lambda m, b: m.tick(), "self.tick"),
    (lambda m, b: remembers(b), "test_written.py: remembers"),
    (lambda m, b: setattr(remembers, "last", b), "test_written.py: remembers"),
    (lambda m, b: m.hidden[0].running_mean.add_(1.0), "self.hidden"),
    (lambda m, b: m.hidden[0](torch.ones(4, DIM)), "self.hidden"),
    (lambda m, b: object.__setattr__(m.task, "calls", b), "self.task.calls"),
]


def two(how: Any, **more: Any) -> list[Any]:
    method = type("Writer", (Writes,), {"how": staticmethod(how), **more})
    made = [cell(seed, n, RECIPE, method=method) for seed, n in ((1, 6), (2, 9))]
    for one in made:
        one.method.shake = torch.ones(CLASSES, DIM)
    assert can_stack(made)
    return made


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize(("how", "name"), WRITERS)
def test_a_written_attribute_is_named(how: Any, name: str, stacked: bool) -> None:
    cells = two(how)
    with pytest.raises(WrittenStateError) as caught:
        train(cells if stacked else cells[:1])
    expected = str(caught.value)
    assert f"{name}'" in expected
    assert "'writes'" in expected
    assert "after_step" in expected


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (lambda m: setattr(m, "steps", m.steps + 1), "self.steps"),
        (lambda m: setattr(m.weight, "data", m.weight.data * 0.9), "self.weight"),
    ],
)
def test_a_later_write_is_found(write: Any, name: str) -> None:
    """A write that the first step does not do."""

    def late(method: Any, batch: api.Batch) -> None:
        SEEN.append(1)
        if len(SEEN) > 4:
            write(method)

    SEEN: list[int] = []
    with pytest.raises(WrittenStateError, match=name):
        train(two(late))


def test_a_parameter_is_written_in_place() -> None:
    """As the message of one that gets other memory says."""

    def clamps(method: Any, batch: api.Batch) -> None:
        with torch.no_grad():
            method.weight.copy_(method.weight.clamp(-0.05, 0.05))

    stacked, alone = two(clamps), two(clamps)
    train(stacked)
    for mine, other in zip(stacked, alone, strict=True):
        start = other.method.weight.detach().clone()
        train([other])
        torch.testing.assert_close(mine.method.weight, other.method.weight)
        assert mine.method.weight.abs().max() < start.abs().max()


def test_what_is_only_read_trains() -> None:
    def reads(method: Any, batch: api.Batch) -> Any:
        local = {**method.cache, "mine": batch.x}
        method.eval()
        method.train()
        return local, method.teacher + method.child.bank.sum(), method.nan, method.helper.calls

    train(two(reads))


class InCombine(Writes):
    """It counts its gradients."""

    how = staticmethod(lambda m, b: None)

    def combine(self, grads: tuple[Tensor, ...]) -> Tensor:
        self.steps += 1
        return super().combine(grads)


class Normalised(Toy):
    """With a layer that keeps statistics."""

    def __init__(self, generator: torch.Generator, hparams: Toy.HParams) -> None:
        super().__init__(generator, hparams)
        self.head = nn.Sequential(nn.BatchNorm1d(DIM, affine=False, track_running_stats=False))


def test_other_places() -> None:
    with pytest.raises(WrittenStateError, match=r"self\.steps"):
        train([cell(1, 6, RECIPE, method=InCombine)])
    with pytest.raises(WrittenStateError, match=r"self\.head\.0'.*BatchNorm1d.*after_step"):
        train([cell(1, 6, RECIPE, method=Normalised)])


class Combines(Toy):
    """`combine` reads a buffer: that of its own cell."""

    def combine(self, grads: tuple[Tensor, ...]) -> Tensor:
        return grads[0] * self.anchor.sum()


def test_combine_reads_its_own_cell() -> None:
    stacked, alone = ([cell(s, 6, RECIPE, method=Combines) for s in (1, 2)] for _ in range(2))
    train(stacked)
    for mine, other in zip(stacked, alone, strict=True):
        train([other])
        torch.testing.assert_close(mine.method.weight, other.method.weight)


def in_place(method: Any) -> dict[str, Tensor]:
    method.teacher.add_(1.0)
    return {"teacher": method.teacher}


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (lambda m: {"teachr": m.teacher}, ["teachr", "'teacher'"]),
        (lambda m: {"weight": m.weight * 0.9}, ["weight", "parameter"]),
        (lambda m: {"teacher": m.teacher[0]}, ["teacher", f"({DIM},)", f"({CLASSES}, {DIM})"]),
        (lambda m: {"teacher": m.teacher.double()}, ["teacher", "float64", "float32"]),
        (lambda m: {"teacher": 1.0}, ["teacher", "float"]),
        (lambda m: [m.teacher], ["list"]),
        (lambda m: None, ["NoneType"]),
        (in_place, ["self.teacher", "after_step"]),
    ],
)
@pytest.mark.parametrize("stacked", [True, False])
def test_after_step_gives_buffers(after: Any, expected: list[str], stacked: bool) -> None:
    cells = two(lambda m, b: None, after_step=after)
    with pytest.raises((ValueError, TypeError, WrittenStateError)) as caught:
        train(cells if stacked else cells[:1])
    assert all(word in str(caught.value) for word in expected)


def test_after_step_may_give_nothing() -> None:
    train(two(lambda m, b: None, after_step=lambda self: {}))
