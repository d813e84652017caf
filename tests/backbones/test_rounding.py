"""Products that may be bfloat16 inside give fp32 outside, and leave the process as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vipbench.backbones._rounding import rounded_linear

SWITCH: Any = torch.backends.mkldnn.matmul


@pytest.mark.parametrize("shape", [(2, 3, 40), (300, 640)])
def test_results_and_gradients_are_finer_than_bfloat16(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(*shape, requires_grad=True)
    weight, bias = torch.randn(256, shape[-1]), torch.randn(256)
    back = torch.randn(*shape[:-1], 256)
    y = rounded_linear(x, weight, bias)
    [grad] = torch.autograd.grad(y, x, back)
    exact = F.linear(x.double(), weight.double(), bias.double())
    wanted = back.double() @ weight.double()
    assert y.dtype == grad.dtype == torch.float32
    for found, value in ((y, exact), (grad, wanted)):
        # Rounding both factors; a result in bfloat16 alone would be off by 2^-9 of itself.
        assert (found - value).norm() < 2**-8 * value.norm()
        assert not torch.equal(found, found.bfloat16().float())


def test_the_switch_is_turned_back() -> None:
    before = SWITCH.fp32_precision
    x = torch.randn(3, 8, requires_grad=True)
    rounded_linear(x, torch.randn(4, 8), torch.randn(4)).sum().backward()
    assert SWITCH.fp32_precision == before
    with pytest.raises(RuntimeError, match="shapes"):
        rounded_linear(x, torch.randn(4, 9), torch.randn(4))
    assert SWITCH.fp32_precision == before
