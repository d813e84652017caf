"""Products with a constant matrix are the matrix's, by whichever library, and so are gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vipbench.backbones.towers import linear as _products
from vipbench.backbones.towers.linear import constant_linear, through

SWITCH: Any = torch.backends.mkldnn.matmul
HAS_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available()
LIBRARIES = [False, pytest.param(True, marks=pytest.mark.skipif(not HAS_ONEDNN, reason="none"))]


@pytest.fixture(params=LIBRARIES, ids=["MKL", "oneDNN"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(_products, "_faster", lambda: request.param)
    return bool(request.param)


@pytest.mark.parametrize("shape", [(2, 3, 40), (300, 640), (1, 7)])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.usefixtures("library")
def test_results_and_gradients(shape: tuple[int, ...], biased: bool, rounded: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(*shape, requires_grad=True)
    # A part of a packed matrix, as queries are of q, k and v.
    weight = torch.randn(3 * 256, shape[-1])[256:512]
    bias = torch.randn(3 * 256)[256:512] if biased else None
    back = torch.randn(*shape[:-1], 256)
    y = constant_linear(x, weight, bias, rounded)
    [grad] = torch.autograd.grad(y, x, back)
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    wanted = back.double() @ weight.double()
    assert y.dtype == grad.dtype == torch.float32
    # Both factors rounded to bfloat16; a result in it alone would be off by 2^-9 of itself.
    limit = 2**-8 if rounded else 2**-20
    for found, value in ((y, exact), (grad, wanted)):
        assert (found - value).norm() < limit * value.norm()
        assert not torch.equal(found, found.bfloat16().float())


@given(st.lists(st.integers(0, 3), max_size=2), st.integers(1, 9), st.integers(1, 9))
def test_any_shape(lead: list[int], inputs: int, outputs: int) -> None:
    x, weight, bias = torch.ones(*lead, inputs), torch.ones(outputs, inputs), torch.ones(outputs)
    for faster in (False, HAS_ONEDNN):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_products, "_faster", lambda faster=faster: faster)
            found = constant_linear(x, weight, bias)
        assert torch.equal(found, torch.full((*lead, outputs), inputs + 1.0))


@pytest.mark.usefixtures("library")
def test_what_is_not_constant_or_fp32_is_left_as_it_is() -> None:
    x, layer = torch.randn(5, 8), nn.Linear(8, 4)
    constant_linear(x, layer.weight, layer.bias).sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(4, 8))
    half = constant_linear(x.bfloat16(), layer.weight.detach().bfloat16())
    assert half.dtype == torch.bfloat16

    layer = nn.Linear(8, 4)
    layer.weight.requires_grad_(False)
    for rows in (x, x.clone().requires_grad_()):
        found = constant_linear(rows, layer.weight, layer.bias)
        [grad] = torch.autograd.grad(found.sum(), [layer.bias])
        assert torch.equal(grad, torch.full((4,), 5.0))
    with torch.autocast("cpu", torch.bfloat16):
        assert constant_linear(x, layer.weight.detach()).dtype == torch.bfloat16

    class Twice(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    twice = Twice(8, 4).requires_grad_(False)
    torch.testing.assert_close(through(twice, x), 2 * F.linear(x, twice.weight, twice.bias))
    hooked = nn.Linear(8, 4).requires_grad_(False)
    hooked.register_forward_hook(lambda _, __, found: 2 * found)
    torch.testing.assert_close(through(hooked, x), 2 * F.linear(x, hooked.weight, hooked.bias))


def test_the_switch_of_the_process_is_turned_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_products, "_faster", lambda: False)
    before = SWITCH.fp32_precision
    x = torch.randn(3, 8, requires_grad=True)
    constant_linear(x, torch.randn(4, 8), torch.randn(4), rounded=True).sum().backward()
    assert SWITCH.fp32_precision == before
    with pytest.raises(RuntimeError, match="shapes"):
        constant_linear(x, torch.randn(4, 9), torch.randn(4), rounded=True)
    assert SWITCH.fp32_precision == before


def test_the_variable_turns_onednn_off() -> None:
    code = "from vipbench.backbones.towers.linear import _faster; print(_faster())"
    environment = {**os.environ, _products.VARIABLE: "0"}
    run = [sys.executable, "-c", code]
    assert subprocess.check_output(run, env=environment, text=True).strip() == "False"
