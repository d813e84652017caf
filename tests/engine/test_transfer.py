"""A trained method put on other classes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vipbench import api
from vipbench.engine.evaluation.learned import versions
from vipbench.engine.evaluation.rebind import best_of, cannot_transfer, transferred


def task_of(classes: int) -> Any:
    def generator(purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(len(purpose))

    return SimpleNamespace(device=torch.device("cpu"), n_classes=classes, generator=generator)


class Centred(api.Method):
    """Learns a shift, centres by what it saw, and knows its classes' texts."""

    name = "centred"
    kind = "AD"
    transfers = True

    def __init__(self, task: Any, hparams: Any) -> None:
        nn.Module.__init__(self)
        self.task = task
        self.texts = torch.arange(3.0 * task.n_classes).view(-1, 3)
        self.shift = nn.Parameter(torch.zeros(3))
        self.shake = torch.zeros(2)

    def noise(self) -> dict[str, tuple[int, ...]]:
        return {"shake": (2,)}

    def prepare(self, support: Any) -> None:
        self.mean = torch.full((3,), 7.0)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.texts.T


def make(task: Any) -> Centred:
    return Centred(task, None)


def test_what_was_learned_comes_along_and_what_classes_say_is_made_anew() -> None:
    trained = make(task_of(4))
    built = versions(trained)
    trained.prepare(None)
    with torch.no_grad():
        trained.shift.fill_(0.5)
    fresh = transferred(trained, built, task_of(2), make)
    assert fresh.shift.tolist() == [0.5] * 3  # type: ignore[union-attr]
    assert fresh.mean.tolist() == [7.0] * 3  # type: ignore[union-attr]
    assert fresh.texts.shape == (2, 3)
    assert not fresh.training
    # The noise of scoring is that of the training's own cell.
    expected = torch.randn(2, generator=task_of(4).generator("noise-eval/shake"))
    assert torch.equal(fresh.shake, expected)  # type: ignore[arg-type]
    assert trained.texts.shape == (4, 3)


def test_what_belongs_to_classes_does_not_fit_others() -> None:
    class Adapted(Centred):
        """Rewrites its texts."""

        def prepare(self, support: Any) -> None:
            self.texts.mul_(2.0)

    trained = Adapted(task_of(4), None)
    built = versions(trained)
    trained.prepare(None)
    with pytest.raises(ValueError, match=r"'texts' .*\(4, 3\).*\(2, 3\)"):
        transferred(trained, built, task_of(2), lambda task: Adapted(task, None))


def test_a_method_may_say_whether_it_transfers() -> None:
    class Not(Centred):
        """Says no."""

        name = "not"
        transfers = False

    nothing: Any = None
    asked = (api.HParams(), nothing, nothing, nothing)
    assert cannot_transfer(Centred, *asked) is None
    assert "'not'" in (cannot_transfer(Not, *asked) or "")

    class Silent(Centred):
        """Leaves it to the engine, and has a `prepare` of its own."""

        transfers = None

    assert "class" in (cannot_transfer(Silent, *asked) or "")


def test_of_several_classes_the_highest_score_counts() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.3], [0.7, 0.2, 0.4]])
    assert best_of(scores, ((2,), (0, 1))).tolist() == [
        pytest.approx([0.3, 0.9]), pytest.approx([0.4, 0.7])
    ]  # fmt: skip
