"""Stacked training equals each cell's own, whatever the cells' sizes, batches and lengths."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vipbench import api
from vipbench.engine.seeding import cell_generator
from vipbench.engine.training.batches import schedule
from vipbench.engine.training.stacking import TrainCell, can_stack, partition
from vipbench.engine.training.trainer import train

DIM, CLASSES = 6, 3


class Toy(api.Method):
    """A linear layer on features with what a method may have: two losses, noise, a buffer."""

    name = "toy"
    kind = "AD"
    needs = frozenset()
    pads = True

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """lr only reaches the recipe; alpha is read in the loss."""

        lr: float = 0.1
        alpha: float = 0.5

    def __init__(self, generator: torch.Generator, hparams: HParams) -> None:
        nn.Module.__init__(self)
        self.hparams = hparams
        self.weight = nn.Parameter(torch.randn(CLASSES, DIM, generator=generator) * 0.1)
        self.anchor = torch.randn(CLASSES, DIM, generator=generator)
        self.shake = torch.zeros(CLASSES, DIM)

    def noise(self) -> dict[str, tuple[int, ...]]:
        return {"shake": (CLASSES, DIM)}

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight + 0.01 * self.shake).T

    def loss(self, batch: api.Batch) -> tuple[Tensor, ...]:
        ce = batch.mean(F.cross_entropy(self(batch.x), batch.labels, reduction="none"))
        return ce, self.hparams.alpha * (self.weight - self.anchor).square().mean()

    def combine(self, grads: tuple[Tensor, ...]) -> Tensor:
        return grads[0] + 2 * grads[1]


class Remembering(Toy):
    """A mean teacher that the loss reads, a count and running statistics."""

    pads = True

    def __init__(self, generator: torch.Generator, hparams: Toy.HParams) -> None:
        super().__init__(generator, hparams)
        self.teacher = self.weight.detach().clone()
        self.steps = torch.zeros((), dtype=torch.long)
        self.centre = torch.zeros(DIM)
        self.frozen = nn.Parameter(torch.zeros(DIM), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - self.centre) + (x @ self.teacher.T) * 0.1 * self.steps

    def loss(self, batch: api.Batch) -> tuple[Tensor, ...]:
        ce, pull = super().loss(batch)
        return ce, pull + (self.weight - self.teacher).square().mean() * self.steps

    def after_step(self) -> dict[str, Tensor]:
        centre = 0.9 * self.centre + 0.1 * self.last_batch.mean(self.last_batch.x)
        return {
            "teacher": 0.9 * self.teacher + 0.1 * self.weight,
            "steps": self.steps + 1,
            "centre": centre,
            "frozen": self.centre,  # what another one held
        }


class Seen:
    """Takes down how many images each call of a loss saw. Callable: data would be looked after."""

    sizes: list[int] = []  # noqa: RUF012

    def __call__(self, n: int) -> None:
        self.sizes.append(n)


SEEN = Seen()


class Centring(Toy):
    """A loss of its own that knows no weights, on a forward with batch statistics."""

    pads = False

    def loss(self, batch: api.Batch) -> tuple[Tensor, ...]:
        SEEN(len(batch.labels))
        x = batch.x - batch.x.mean(0)
        ce = F.cross_entropy(x @ self.weight.T + self(batch.x), batch.labels)
        return ce, (self.weight - self.anchor).square().mean()


def cell(
    seed: int,
    n: int,
    recipe: api.Recipe,
    best_val: bool = False,
    method: type[Toy] = Toy,
) -> TrainCell:
    generator = cell_generator("toy", n, seed)
    draw = generator("data")
    views = torch.randn(4, n, DIM, generator=draw)
    labels = torch.arange(n) % CLASSES
    val = api.Labelled(torch.randn(9, DIM, generator=draw), torch.arange(9) % CLASSES)
    support = api.Support(views[0], labels, CLASSES, n, lambda v: views[v], 4, val=val)
    made = method(generator("init"), Toy.HParams())
    return TrainCell(made, recipe, support, generator, best_val)


@pytest.mark.parametrize("method", [Toy, Remembering])
@settings(max_examples=25)
@given(data=st.data())
def test_stacked_equals_alone(method: type[Toy], data: st.DataObject) -> None:
    base = api.Recipe(
        optimizer=data.draw(st.sampled_from(["sgd", "adam", "adamw"])),
        drop_last=data.draw(st.booleans()),
    )
    best_val = data.draw(st.booleans())
    averaged = data.draw(st.booleans())
    plans = []
    for seed in range(data.draw(st.integers(2, 4))):
        epochs = data.draw(st.integers(1, 5))
        weights = tuple(float(e + 1) for e in range(epochs)) if averaged else None
        batch = data.draw(st.one_of(st.none(), st.integers(1, 8)))
        recipe = replace(
            base, epochs=epochs, batch_size=batch, epoch_weights=weights,
            lr=data.draw(st.sampled_from([0.01, 0.1])),
        )  # fmt: skip
        plans.append((seed, data.draw(st.integers(1, 12)), recipe, best_val, method))
    stacked, alone = [cell(*p) for p in plans], [cell(*p) for p in plans]
    assert can_stack(stacked)
    train(stacked)
    for other in alone:
        train([other])
    for mine, other in zip(stacked, alone, strict=True):
        torch.testing.assert_close(mine.method.weight, other.method.weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mine.losses, other.losses, rtol=1e-5, atol=1e-6)
        for a, b in zip(mine.method.buffers(), other.method.buffers(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        assert [h["epoch"] for h in mine.history] == [h["epoch"] for h in other.history]
        for name in ("support_accuracy", "gradient_norm", "loss"):
            mine_told, other_told = ([h[name] for h in c.history] for c in (mine, other))
            torch.testing.assert_close(mine_told, other_told, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("method_class", "optimizer_name"),
    [(Toy, "sgd"), (Centring, "sgd"), (Remembering, "sgd"), (Toy, "adam"), (Toy, "adamw")],
)
def test_alone_equals_a_plain_torch_loop(method_class: type[Toy], optimizer_name: Any) -> None:
    """One cell, written as anyone would write the loop."""
    recipe = api.Recipe(optimizer_name, lr=0.1, epochs=3, batch_size=4, drop_last=False)
    ours, plain = (cell(1, 10, recipe, method=method_class) for _ in range(2))
    train([ours])
    method, support, plan = plain.method, plain.support, schedule(plain)
    noise = plain.generator("noise/shake")
    kinds: dict[str, Any] = {
        "sgd": partial(torch.optim.SGD, momentum=0.9),
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
    }
    optimizer = kinds[optimizer_name](method.parameters(), lr=1.0, weight_decay=5e-4)
    losses, right = [], [0] * 3
    for step, lr in enumerate(plan.lr):
        rows = plan.rows[step][plan.weight[step] > 0]
        method.shake = torch.randn(CLASSES, DIM, generator=noise)
        x = support.view(plan.view[step])[rows]
        method.last_batch = api.Batch(x, support.labels[rows], torch.ones(len(rows)))
        ce, pull = method.loss(method.last_batch)
        right[step // plan.per_epoch] += int((method(x).argmax(1) == support.labels[rows]).sum())
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        (ce + 2 * pull).backward()
        optimizer.step()
        with torch.no_grad():
            held = method.state_dict()
            for name, value in {k: v.clone() for k, v in method.after_step().items()}.items():
                held[name].copy_(value)
        losses.append(float((ce + pull).detach()))
    torch.testing.assert_close(ours.method.weight, method.weight, rtol=1e-5, atol=1e-6)
    state = ours.method.state_dict()
    for name in ("teacher", "steps", "centre", "frozen") if method_class is Remembering else ():
        torch.testing.assert_close(state[name], held[name], rtol=1e-5, atol=1e-6)
    assert ours.losses == pytest.approx(losses, rel=1e-5)
    # Every epoch sees each of the 10 images once, under its view, before the step's update.
    assert [h["support_accuracy"] for h in ours.history] == [n / 10 for n in right]


@pytest.mark.parametrize("pooled", [False, True])
@settings(max_examples=15)
@given(data=st.data())
def test_a_loss_without_weights_stacks_where_batches_are_alike(
    pooled: bool, data: st.DataObject
) -> None:
    base = api.Recipe(lr=0.1, drop_last=data.draw(st.booleans()), pooled=pooled)
    plans = []
    for seed in range(4):
        batch = data.draw(st.sampled_from([None, 3, 4]))
        recipe = replace(base, epochs=data.draw(st.integers(1, 4)), batch_size=batch)
        plans.append((seed, data.draw(st.integers(2, 7)), recipe, data.draw(st.booleans())))
    stacked, alone = ([cell(*p, method=Centring) for p in plans] for _ in range(2))
    parts = partition(stacked)
    for part in parts:
        sizes = [schedule(one).sizes for one in part]
        assert all(a[: len(b)] == b[: len(a)] for a in sizes for b in sizes)
        SEEN.sizes.clear()
        train(part)
        assert set(SEEN.sizes) == {n for each in sizes for n in each}
    for one in alone:
        train([one])
    for mine, other in zip(stacked, alone, strict=True):
        torch.testing.assert_close(mine.method.weight, other.method.weight, rtol=1e-5, atol=1e-6)


def test_which_cells_of_a_loss_without_weights_stack() -> None:
    def two(n: int, m: int, batch: int, drop_last: bool) -> int:
        recipe = api.Recipe(batch_size=batch, drop_last=drop_last)
        return len(partition([cell(s, k, recipe, method=Centring) for s, k in ((1, n), (2, m))]))

    assert two(8, 8, 5, False) == 1  # batches of 5 and 3 in both
    assert two(8, 12, 4, False) == 1  # 4 at every step
    assert two(9, 11, 4, True) == 1
    assert two(8, 9, 4, False) == 2
    assert two(3, 8, 4, True) == 2


def test_whose_batches_are_padded() -> None:
    class Default(api.Method):
        pass

    class Own(Default):
        def loss(self, batch: api.Batch) -> Tensor:
            return batch.x.mean()

    class Declared(Own):
        pads = True

    class Again(Declared):
        def loss(self, batch: api.Batch) -> Tensor:
            return batch.x.mean()

    class Towers(Default):
        trains_towers = True

    class Never(Default):
        pads = False

    expected = {Default: True, Own: False, Declared: True, Again: False, Towers: False}
    for method, padded in {**expected, Never: False}.items():
        assert api.pads_batches(method) == padded, method
        assert api.pads_batches(type("Derived", (method,), {})) == padded, method


def test_validation_is_scored_ten_times_or_where_it_selects_every_epoch() -> None:
    recipe = api.Recipe(epochs=40)
    for best_val, times in ((False, 10), (True, 40)):
        one = cell(1, 6, recipe, best_val=best_val)
        train([one])
        assert sum("val_accuracy" in h for h in one.history) == times
        assert all("support_accuracy" in h for h in one.history)
        assert "val_accuracy" in one.history[-1]


class Silent(Toy):
    """Its loss does not call forward."""

    def loss(self, batch: api.Batch) -> tuple[Tensor, ...]:
        return (batch.mean((batch.x @ self.weight.T).square().mean(1)),)

    def combine(self, grads: tuple[Tensor, ...]) -> Tensor:
        return grads[0]


def test_what_is_not_seen_is_not_reported() -> None:
    one = cell(1, 6, api.Recipe(epochs=2))
    one.method = Silent(one.generator("init"), Toy.HParams())
    train([one])
    assert all("loss" in h and "support_accuracy" not in h for h in one.history)


def test_every_image_once_an_epoch() -> None:
    plan = schedule(cell(3, 11, api.Recipe(epochs=4, batch_size=4, drop_last=False)))
    for epoch in range(4):
        rows = plan.rows[epoch * 3 : epoch * 3 + 3][plan.weight[epoch * 3 : epoch * 3 + 3] > 0]
        assert sorted(rows.tolist()) == list(range(11))


class Three(Toy):
    """Three losses whose gradients are put together as the contract does by itself."""

    combine = api.Method.combine

    def loss(self, batch: api.Batch) -> tuple[Tensor, ...]:
        return *super().loss(batch), 0.1 * self.weight.sum()


class OfThree(Three):
    def loss(self, batch: api.Batch) -> Tensor:
        return sum(super().loss(batch), torch.zeros(()))


def test_the_gradients_of_several_losses_are_added_up() -> None:
    recipe = api.Recipe(lr=0.1, epochs=2, batch_size=4)
    several, one = (cell(4, 8, recipe, method=method) for method in (Three, OfThree))
    train([several])
    train([one])
    torch.testing.assert_close(several.method.weight, one.method.weight)


def test_best_val_keeps_what_after_step_gave_then() -> None:
    recipe = api.Recipe(lr=0.5, epochs=6, schedule="constant", batch_size=4)
    best = cell(3, 9, recipe, best_val=True, method=Remembering)
    train([best])
    seen = [h["val_accuracy"] for h in best.history]
    epochs = seen.index(max(seen)) + 1
    assert epochs < recipe.epochs
    until = cell(3, 9, replace(recipe, epochs=epochs), method=Remembering)
    train([until])
    assert until.method.steps == epochs * 2
    for name, value in until.method.state_dict().items():
        if name != "shake":
            torch.testing.assert_close(best.method.state_dict()[name], value)


def test_best_val_takes_the_first_of_ties() -> None:
    """Validation images of zeros tie in every epoch, while the weights go on."""
    recipe = api.Recipe(lr=0.1, schedule="constant", batch_size=None, epochs=3)
    ends = []
    for epochs, best_val in ((3, True), (1, False), (3, False)):
        one = cell(1, 6, replace(recipe, epochs=epochs), best_val=best_val)
        assert one.support.val is not None
        nothing = api.Labelled(torch.zeros_like(one.support.val.x), one.support.val.labels)
        one.support = replace(one.support, val=nothing)
        train([one])
        ends.append(one.method.weight.detach())
        if best_val:
            assert len({h["val_accuracy"] for h in one.history}) == 1
    chosen, first, last = ends
    torch.testing.assert_close(chosen, first)
    assert not torch.allclose(chosen, last)


def test_cells_that_read_other_hyperparameters_do_not_stack() -> None:
    recipe = api.Recipe()
    a, b = cell(1, 6, recipe), cell(2, 6, recipe)
    b.method.hparams = Toy.HParams(lr=0.3)
    assert can_stack([a, b])
    b.method.hparams = Toy.HParams(alpha=0.1)
    assert not can_stack([a, b])
    b = cell(2, 6, recipe)
    b.method.extra = "differs"
    assert not can_stack([a, b])
    assert not can_stack([a, cell(2, 6, replace(recipe, momentum=0.0))])
