"""Steps repeated from a recording give what the steps give, or the cells are trained without."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.engine.test_training import Centring, Remembering, Toy, cell
from vipbench import api
from vipbench.engine.training import cuda_graphs as replay
from vipbench.engine.training.cuda_graphs import (
    FEWEST,
    WARM,
    Recording,
    ReplayError,
    Replays,
    agree,
    replays,
)
from vipbench.engine.training.stacking import TrainCell
from vipbench.engine.training.step import Step
from vipbench.engine.training.trainer import train
from vipbench.engine.workers import session as worker
from vipbench.engine.workers.messages import Done, Event, Note
from vipbench.errors import UsageError
from vipbench.runspec.run import RunSpec


class Tape(TorchDispatchMode):
    """A recording without a GPU: operations on tensors, repeated on the same memory, no Python.

    spoil: called with the number of each replay and the step, to do something else besides."""

    def __init__(self, step: Step, spoil: Callable[[int, Step], None]) -> None:
        super().__init__()
        self.step, self.spoil = step, spoil
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.replayed = 0
        self.closed = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        assert not self.closed
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            for new, place in zip(tree_leaves(again), tree_leaves(out), strict=True):
                if isinstance(place, Tensor) and new.data_ptr() != place.data_ptr():
                    place.copy_(new)
        self.replayed += 1
        self.spoil(self.replayed, self.step)

    def close(self) -> None:
        self.closed = True


class Tapes:
    """A Recorder of Tapes. waits: whether the step is one that waits for the device. broken: what
    recording raises."""

    def __init__(
        self,
        spoil: Callable[[int, Step], None] = lambda number, step: None,
        waits: bool = False,
        broken: Exception | None = None,
    ) -> None:
        self.spoil, self.waits, self.broken = spoil, waits, broken
        self.tapes: list[Tape] = []

    def warm(self, work: Callable[[], None], strict: bool) -> None:
        work()
        if strict and self.waits:
            raise RuntimeError("called a synchronizing CUDA operation")

    def record(self, work: Callable[[], None]) -> Recording:
        if self.broken is not None:
            raise self.broken
        assert isinstance(work, Step)
        before = [value.clone() for value in work.written()]
        tape = Tape(work, self.spoil)
        with tape:
            work()
        for place, value in zip(work.written(), before, strict=True):
            place.copy_(value)
        self.tapes.append(tape)
        return tape


class Hiding(Toy):
    """It counts where nobody looks."""

    name = "hiding"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.number = itertools.count().__next__

    def loss(self, batch: api.Batch) -> tuple[Tensor, ...]:
        ce, pull = super().loss(batch)
        return ce * (1 + 0.01 * self.number()), pull


class Scalar(Toy):
    """A parameter without dimensions."""

    name = "scalar"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.scale = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


SIZES = ((5, 40, None), (12, 25, 4), (7, 30, 3))  # images, epochs, batch size


def cells(method: type[Toy] = Toy, sizes: Any = SIZES, **recipe: Any) -> list[TrainCell]:
    made = []
    for seed, (n, epochs, batch) in enumerate(sizes):
        one = cell(seed, n, api.Recipe(epochs=epochs, batch_size=batch, **recipe))
        one.method = method(one.generator("init"), Toy.HParams())
        one.method.shake = torch.zeros(3, 6)
        made.append(one)
    return made


def same(some: list[TrainCell], others: list[TrainCell]) -> None:
    """In every bit."""
    for mine, other in zip(some, others, strict=True):
        for a, b in zip(mine.method.parameters(), other.method.parameters(), strict=True):
            assert torch.equal(a, b)
        for a, b in zip(mine.method.buffers(), other.method.buffers(), strict=True):
            assert torch.equal(a, b)
        assert mine.losses == other.losses
        assert mine.norms == other.norms
        # As text: some methods' are NaN.
        assert list(map(str, mine.right)) == list(map(str, other.right))


@pytest.mark.parametrize("method", [Toy, Scalar, Remembering])
@pytest.mark.parametrize(
    "recipe",
    [
        {"momentum": 0.0},
        {"momentum": 0.9, "drop_last": False},
        {"optimizer": "adam", "lr": 0.01},
        {"optimizer": "adamw", "pooled": True},
    ],
)
@pytest.mark.parametrize("sizes", [SIZES, SIZES[:1]])
def test_repeated_steps_are_the_steps(
    method: type[Toy], recipe: dict[str, Any], sizes: Any
) -> None:
    notes: list[str] = []
    tapes = Tapes()
    repeats = Replays(tapes, notes.append)
    plain, repeated = (cells(method, sizes, **recipe) for _ in range(2))
    train(plain)
    train(repeated, replays=repeats)
    same(repeated, plain)
    assert notes == []
    steps = sorted({len(c.losses) for c in plain})
    stretches = [b - a for a, b in zip([0, *steps[:-1]], steps, strict=True)]
    assert repeats.replayed == sum(n - WARM for n in stretches if n >= FEWEST) > 0
    assert all(tape.closed for tape in tapes.tapes)


@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_of_several_sizes_are_not_recorded(drop_last: bool) -> None:
    tapes = Tapes()
    sizes = [(11, FEWEST, 4)] * 2
    plain, repeated = (cells(Centring, sizes, drop_last=drop_last) for _ in range(2))
    train(plain)
    train(repeated, replays=Replays(tapes, pytest.fail))
    same(repeated, plain)
    assert bool(tapes.tapes) == drop_last


def test_few_steps_are_not_recorded() -> None:
    tapes = Tapes()
    train(cells(sizes=[(6, FEWEST - 1, None)]), replays=Replays(tapes, pytest.fail))
    assert not tapes.tapes
    train(cells(sizes=[(6, FEWEST, None)]), replays=Replays(tapes, pytest.fail))
    assert len(tapes.tapes) == 1


@cache
def plain(method: type[Toy], sizes: Any) -> list[TrainCell]:
    """Trained step by step."""
    made = cells(method, sizes)
    train(made)
    return made


def once_more(
    tapes: Tapes, method: type[Toy], words: str, others: bool, sizes: Any = SIZES
) -> None:
    """Repeating goes wrong, which one note tells, and trained again the numbers are right.
    others: whether other methods' steps are still repeated."""
    notes: list[str] = []
    repeats = Replays(tapes, notes.append)
    with pytest.raises(ReplayError, match=words):
        train(cells(method, sizes), replays=repeats)
    assert all(tape.closed for tape in tapes.tapes)
    replayed = repeats.replayed
    repeated = cells(method, sizes)
    train(repeated, replays=repeats)
    same(repeated, plain(method, tuple(sizes)))
    assert repeats.replayed == replayed
    tapes.spoil, tapes.waits = (lambda number, step: None), False
    train(cells(Scalar), replays=repeats)
    assert (repeats.replayed > replayed) == others
    [note] = notes
    assert words in note
    assert (f"'{method.name}'" if others else "all methods") in note


def test_a_hidden_count_is_found() -> None:
    once_more(Tapes(), Hiding, "numbers that differ", others=True)


def test_a_step_that_waits() -> None:
    once_more(Tapes(waits=True), Toy, "synchronizing", others=True)


@pytest.mark.parametrize("error", [RuntimeError("capture failed"), torch.OutOfMemoryError("full")])
def test_what_cannot_be_recorded(error: Exception) -> None:
    once_more(Tapes(broken=error), Toy, str(error), others=False)


@pytest.mark.parametrize("first", [1, 2, 17, 18, 60, 72])
@pytest.mark.parametrize("what", ["params", "statistics", "moment"])
def test_wrong_numbers_are_found_at_the_next_comparison(what: str, first: int) -> None:
    """Wrong from one of the 72 replays on: 75 steps, the first three of which come before."""

    def spoil(number: int, step: Step) -> None:
        if number >= first:
            places = {
                "params": step.params["method.weight"][0, 0],
                "statistics": step.statistics[0],
                "moment": step.optimizer.first["method.weight"][-1],
            }
            places[what].mul_(1.05)

    sizes = [(12, 25, 4), (12, 25, 4)]
    once_more(Tapes(spoil), Toy, "numbers that differ", True, sizes)


def test_a_replay_that_raises() -> None:
    def spoil(number: int, step: Step) -> None:
        if number == 9:
            raise RuntimeError("device lost")

    once_more(Tapes(spoil), Toy, "device lost", others=True)


def test_agreement_is_by_rounding_alone_and_for_each_cell() -> None:
    before = [torch.zeros(3, 2), torch.zeros(2, 5), torch.ones(2)]
    wanted = [torch.tensor([[1.0, 2.0], [0.5, 0.5], [3.0, torch.nan]]), torch.ones(2, 5),
              torch.tensor([2.0, 2.0])]  # fmt: skip

    def found(i: int, place: Any, value: float) -> bool:
        mine = [value.clone() for value in wanted]
        mine[i][place] = value
        return agree(mine, wanted, before)

    assert found(0, (0, 0), 1.000005)
    assert not found(0, (0, 0), 1.0001)
    assert not found(0, (0, 1), torch.nan)
    assert not found(0, (2, 1), 3.0)
    assert found(0, (2, 0), 4.0)  # a tie may fall to either side
    assert found(1, (1, 2), 1.005)
    assert not found(1, (1, 2), 1.1)
    assert not found(1, (1, 2), torch.inf)
    assert not found(2, 1, 2.1)
    unmoved = [wanted[0], before[1], before[2]]
    assert not agree(unmoved, wanted, before)


def test_switch_and_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.delenv(replay.VARIABLE, raising=False)
    assert replays(cuda, pytest.fail) is None
    monkeypatch.setenv(replay.VARIABLE, "0")
    assert replays(cuda, pytest.fail) is None
    monkeypatch.setenv(replay.VARIABLE, "1")
    assert replays(cpu, pytest.fail) is None
    monkeypatch.setattr(replay, "CudaGraphs", lambda device: Tapes())
    assert replays(cuda, pytest.fail) is not None
    monkeypatch.setenv(replay.VARIABLE, "yes")
    with pytest.raises(UsageError, match=r"VIPBENCH_CUDA_GRAPHS .*'yes'.* 1"):
        replays(cpu, pytest.fail)


@pytest.mark.parametrize("goes_wrong", [False, True])
def test_a_run(goes_wrong: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a whole worker: the records are the same, whether repeating goes right or wrong."""
    monkeypatch.setenv("VIPBENCH_CACHE", str(tmp_path))

    def spoil(number: int, step: Step) -> None:
        if goes_wrong and number > 20:
            step.params["method.context"].add_(1e-3)

    tapes = Tapes(spoil)
    run = RunSpec.parse(
        {
            "methods": [{"name": "coop", "epochs": 40}],
            "datasets": ["synthderm"],
            "backbones": ["tiny-clip"],
            "shots": [1, 2],
            "seeds": [1, 2],
            "views": "none",
            "device": "cpu",
        }
    )
    found: list[list[Event]] = []
    for recorder in (None, tapes):
        events: list[Event] = []
        session = worker.Session(events.append)
        if recorder is not None:
            monkeypatch.setattr(worker, "replays", lambda _, note: Replays(tapes, note))
        session.plan(run)
        session.run(list(session.cells))
        found.append(events)
    assert tapes.tapes[0].replayed > 20
    plain, repeated = ([e for e in events if isinstance(e, Done)] for events in found)
    assert len(plain) == 4
    for a, b in zip(plain, repeated, strict=True):
        assert a.record.error is b.record.error is None
        assert a.record.metrics == b.record.metrics
        assert a.record.history == b.record.history
        assert a.parameters == b.parameters
        assert a.predictions.scores.tobytes() == b.predictions.scores.tobytes()
    notes = [e.text for e in found[1] if isinstance(e, Note)]
    assert [("off for 'coop'" in n and "numbers that differ" in n) for n in notes] == [
        True
    ] * goes_wrong
    made = len(tapes.tapes)
    session.plan(run)
    session.run(list(session.cells))
    assert (len(tapes.tapes) > made) != goes_wrong  # what was refused stays refused
    again = [e for e in events if isinstance(e, Done)][len(plain) :]
    assert [e.record.metrics for e in again] == [e.record.metrics for e in plain]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", [Toy, Scalar])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_on_a_gpu(method: type[Toy], optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(replay.VARIABLE, "1")
    device = torch.device("cuda", torch.cuda.current_device())
    ends = []
    repeats = replays(device, pytest.fail)
    for use in (None, repeats):
        some = cells(method, optimizer=optimizer)
        for one in some:
            one.method.to(device)
            views = torch.stack([one.support.view(v) for v in range(4)]).to(device)
            val = api.Labelled(one.support.val.x.to(device), one.support.val.labels.to(device))
            one.support = replace(
                one.support, plain=views[0], labels=one.support.labels.to(device), val=val,
                view=lambda v, views=views: views[v],
            )  # fmt: skip
        train(some, replays=use)
        ends.append(some)
    assert repeats is not None
    assert repeats.replayed > 0
    for plain, repeated in zip(*ends, strict=True):
        torch.testing.assert_close(
            repeated.method.weight, plain.method.weight, rtol=1e-3, atol=1e-5
        )
        torch.testing.assert_close(repeated.losses, plain.losses, rtol=1e-3, atol=1e-5)
