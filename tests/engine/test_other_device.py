"""The rule of `vipbench check` on devices: mistakes are named. The conformance tests hold built-in
methods to it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.methods.given import generator
from vipbench import api, testing
from vipbench.engine.other_device import DeviceError, Labels, another_device
from vipbench.plugins.registry import load_registry

REGISTRY = load_registry()
TABLE = torch.tensor([0.0, 0.0, 0.0])


class Probe(api.Method):
    """Adds what `how` makes, of itself and a tensor on the device, in the call `where`."""

    name = "probe"
    kind = "AD"
    needs = frozenset()
    how: Callable[[Any, Tensor], Any]
    where = "forward"

    @dataclasses.dataclass(frozen=True)
    class HParams(api.HParams):
        def recipe(self, info: api.CellInfo) -> api.Recipe:
            return api.Recipe()

    def __init__(self, task: api.Task, hparams: Any) -> None:
        super().__init__(task, hparams)
        self.weight = torch.nn.Parameter(task.normal("weight", 3, task.info.dim))
        self.known = torch.ones(3)  # moved by the engine, as a buffer
        self.held = [torch.ones(3)]  # moved by nobody
        self.made = self.weight[:, 0] + self.at("__init__", self.weight)

    def at(self, where: str, x: Tensor) -> Any:
        return type(self).how(self, x) if self.where == where else 0.0

    def prepare(self, support: api.Support) -> None:
        self.mean = support.plain.mean(0)[:3] + self.at("prepare", support.plain)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.at("forward", x)

    def finish(self, support: api.Support) -> None:
        self.mean = self.mean + self.at("finish", support.plain)

    def predict(self, x: Tensor) -> Tensor:
        return self(x) + self.at("predict", x)


def probe(how: Callable[[Any, Tensor], Any], where: str = "forward") -> type[api.Method]:
    return type("One", (Probe,), {"how": staticmethod(how), "where": where})


class Doubled(torch.autograd.Function):
    """What its backward pass multiplies by has no device."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * torch.full(grad.shape, 2.0)


@torch.enable_grad()
def backward(x: Tensor) -> Tensor:
    weight = torch.ones(3, device=x.device, requires_grad=True)
    Doubled.apply(weight).sum().backward()
    assert weight.grad is not None
    return weight.grad


def added(total: Tensor, x: Tensor) -> Tensor:
    total += x.sum()
    return total


def once(how: Callable[[Any, Tensor], Any]) -> DeviceError | None:
    """What is wrong with `how` in one forward pass on the device, beside no run."""
    tower = REGISTRY.backbone("tiny-clip")[0]
    info = api.CellInfo(1, 3, 3, tower.name, tower.dim, 0, "toy")
    labels = Labels()
    with another_device([tower], labels), suppress(DeviceError), torch.no_grad():
        task = api.Task(tower, ("a", "b", "c"), ("{}",), None, info, generator)
        method = probe(how)(task, None).to(task.device)
        method(torch.ones(2, tower.dim).to(task.device))
    return labels.problem


@pytest.mark.parametrize("where", ["prepare", "predict"])
def test_a_tensor_without_a_device_is_named(where: str) -> None:
    def how(method: Any, x: Tensor) -> Tensor:
        return x.flatten()[:2] @ torch.zeros(2, 3)

    with pytest.raises(testing.ConformanceError) as caught:
        testing.check_device(probe(how, where))
    line = how.__code__.co_firstlineno + 1
    words = ("device", "probe", f"in {where}, {Path(__file__).name} line {line}:")
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_line_of_a_file_with_a_relative_path_is_named() -> None:
    names: dict[str, Any] = {}
    source = "import torch\n\ndef how(m, x):\n    return m.known @ torch.eye(3)\n"
    exec(compile(source, "mine.py", "exec"), names)
    assert "in forward, mine.py line 4:" in str(once(names["how"]))


@pytest.mark.parametrize(
    "how",
    [
        lambda m, x: torch.arange(3),
        lambda m, x: torch.tensor([1.0, 2.0, 3.0]),
        lambda m, x: torch.as_tensor([1.0, 2.0, 3.0]),
        lambda m, x: torch.from_numpy(np.zeros(3, dtype=np.float32)),
        lambda m, x: torch.zeros(3, device="cpu"),
        lambda m, x: torch.eye(3)[0],
        lambda m, x: m.known @ torch.eye(3),
        lambda m, x: x.new_zeros(3, device="cpu"),
        lambda m, x: m.known.to("cpu"),
        lambda m, x: m.known.cpu(),
        lambda m, x: m.held[0],
        lambda m, x: TABLE,
        lambda m, x: torch.as_tensor(m.known.numpy(), device=x.device),
        lambda m, x: torch.randn(3, generator=torch.Generator(), device=x.device),
        lambda m, x: torch.zeros(3).to("cuda"),
        lambda m, x: added(torch.tensor(0.0), m.known),
        lambda m, x: torch.stack([m.known.sum(), torch.tensor(1.0), torch.tensor(2.0)]),
        lambda m, x: m.known.index_select(0, torch.tensor(1)),
        lambda m, x: torch.full((3,), m.known.sum()),
        lambda m, x: torch.randn(3, generator=torch.Generator(x.device)).to(x.device),
        lambda m, x: backward(x),
    ],
)
def test_mistakes(how: Callable[[Any, Tensor], Any]) -> None:
    assert "device" in str(once(how))


@pytest.mark.parametrize(
    "how",
    [
        lambda m, x: x.new_zeros(3),
        lambda m, x: torch.zeros(3, device=x.device),
        lambda m, x: torch.zeros(3).to(m.task.device),
        lambda m, x: torch.zeros(3).to(x),
        lambda m, x: torch.tensor([1.0, 2.0, 3.0], device=m.task.device),
        lambda m, x: torch.from_numpy(np.zeros(3, dtype=np.float32)).to(x.device),
        lambda m, x: torch.zeros_like(m.known),
        lambda m, x: torch.nn.functional.one_hot(m.known.long(), 3)[0],
        lambda m, x: m.known[torch.tensor([2, 0, 1])],
        lambda m, x: m.known.masked_fill(m.known > 5, 0.0) * torch.tensor(2.0),
        lambda m, x: float(m.known.sum()) * torch.eye(3, device=x.device)[0],
        lambda m, x: torch.as_tensor(m.known.cpu().numpy(), device=x.device),
        lambda m, x: torch.randn(3, generator=torch.Generator()).to(x.device),
        lambda m, x: torch.randn(3, generator=torch.Generator(x.device), device=x.device),
        lambda m, x: added(torch.tensor(0.0, device=x.device), m.known),
        lambda m, x: copy.deepcopy(m.state_dict())["known"],
        lambda m, x: x.new_tensor([1.0, 2.0, 3.0]),
        lambda m, x: torch.zeros(3).type_as(m.known),
        lambda m, x: torch.maximum(m.known, torch.tensor(0.0)),
        lambda m, x: torch.eye(3, device=x.device).to_sparse().to_dense()[0],
    ],
)
def test_what_is_right(how: Callable[[Any, Tensor], Any]) -> None:
    assert once(how) is None
