"""The stacked optimizers against torch.optim, and the schedules against closed forms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vipbench.api import Recipe
from vipbench.engine.training.optim import (
    Optimizer,
    corrections,
    learning_rates,
    steps_per_epoch,
    total_steps,
)

MAKERS = {
    "sgd": lambda p, r: torch.optim.SGD(
        p, lr=r.lr, momentum=r.momentum, weight_decay=r.weight_decay
    ),
    "adam": lambda p, r: torch.optim.Adam(
        p, lr=r.lr, betas=r.betas, eps=r.eps, weight_decay=r.weight_decay
    ),
    "adamw": lambda p, r: torch.optim.AdamW(
        p, lr=r.lr, betas=r.betas, eps=r.eps, weight_decay=r.weight_decay
    ),
}


@pytest.mark.parametrize("name", MAKERS)
@given(data=st.data())
def test_updates_are_torchs(name: str, data: st.DataObject) -> None:
    recipe = Recipe(
        optimizer=name,  # type: ignore[arg-type]
        lr=data.draw(st.floats(1e-4, 0.5)),
        momentum=data.draw(st.sampled_from([0.0, 0.9])),
        weight_decay=data.draw(st.sampled_from([0.0, 5e-4, 0.1])),
        eps=data.draw(st.sampled_from([1e-8, 1e-4])),
    )
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    start = torch.randn(3, 4, 2, generator=generator, dtype=torch.float64)
    ours = {"w": start.clone()}
    theirs = [start[i].clone().requires_grad_() for i in range(3)]
    makers = [MAKERS[name]([p], recipe) for p in theirs]
    optimizer = Optimizer(recipe, ours)
    places = corrections(recipe, 5, start.device)
    rates = torch.full((3,), recipe.lr, dtype=torch.float64)
    for step in range(5):
        grads = torch.randn(3, 4, 2, generator=generator, dtype=torch.float64)
        optimizer.step(ours, {"w": grads}, rates, places[step])
        for i, (parameter, maker) in enumerate(zip(theirs, makers, strict=True)):
            parameter.grad = grads[i].clone()
            maker.step()
    torch.testing.assert_close(ours["w"], torch.stack(theirs).detach(), rtol=1e-9, atol=1e-12)


def test_warmup_cosine_is_dassls() -> None:
    rates = learning_rates(Recipe(lr=2e-3, epochs=10, batch_size=8), 16)
    assert len(rates) == 20
    assert rates[:2] == [1e-5, 1e-5]
    assert rates[2] == pytest.approx(2e-3)
    assert rates[4] == pytest.approx(1.95105652e-3)


def test_cosine_by_step_is_torchs() -> None:
    recipe = Recipe(
        optimizer="adamw", lr=0.1, epochs=None, iterations=7, schedule="cosine-step", min_lr=1e-3
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7, eta_min=1e-3)
    expected = []
    for _ in range(7):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    assert learning_rates(recipe, 5) == pytest.approx(expected)


@given(
    n=st.integers(1, 200),
    batch=st.one_of(st.none(), st.integers(1, 64)),
    drop=st.booleans(),
    epochs=st.integers(1, 9),
)
def test_steps(n: int, batch: int | None, drop: bool, epochs: int) -> None:
    recipe = Recipe(epochs=epochs, batch_size=batch, drop_last=drop)
    per_epoch = steps_per_epoch(recipe, n)
    size = min(batch or n, n)
    assert per_epoch >= 1
    if drop:
        assert n - size < per_epoch * size <= n
    else:
        assert n <= per_epoch * size < n + size
    assert total_steps(recipe, n) == epochs * per_epoch
