"""Which tensors of a method are kept beside its record."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load
from torch import Tensor, nn

from vipbench import api
from vipbench.engine.evaluation import learned as module
from vipbench.engine.evaluation.learned import learned, versions


class Busy(api.Method):
    """Has a tensor of every kind."""

    name = "busy"
    kind = "AD"

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.weight = nn.Parameter(torch.ones(3, 4))
        self.frozen = nn.Parameter(torch.ones(5), requires_grad=False)
        self.texts = torch.ones(7)
        self.alpha = torch.tensor(0.5)
        self.shake = torch.zeros(2)

    def noise(self) -> dict[str, tuple[int, ...]]:
        return {"shake": (2,)}

    def forward(self, x: Tensor) -> Tensor:
        return x

    def work(self) -> None:
        """What prepare and finish do."""
        self.keys = torch.arange(6.0)
        self.alpha.fill_(0.9)
        self.shake = torch.ones(2)


def test_what_was_trained_made_or_written_is_kept_and_no_more() -> None:
    method = Busy()
    before = versions(method)
    method.work()
    data, changed = learned(method, before)
    assert data is not None
    kept = load(data)
    assert kept.keys() == {"weight", "keys", "alpha"}
    assert kept["alpha"].item() == pytest.approx(0.9)
    assert changed["tensors"] == {"weight": [3, 4], "alpha": [], "keys": [6]}
    assert changed["bytes"] == len(data)
    assert "left_out" not in changed


def test_what_is_large_is_named_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    method = Busy()
    before = versions(method)
    method.work()
    monkeypatch.setattr(module, "MOST_BYTES", 60)
    data, changed = learned(method, before)
    assert data is not None
    assert load(data).keys() == {"weight", "alpha"}
    assert changed["left_out"] == {"keys": 24}
    monkeypatch.setattr(module, "MOST_BYTES", 30)
    data, changed = learned(method, before)
    assert data is not None
    assert load(data).keys() == {"keys", "alpha"}
    assert changed["left_out"] == {"weight": 48}
    monkeypatch.setattr(module, "MOST_BYTES", 1)
    assert learned(method, before)[0] is None
