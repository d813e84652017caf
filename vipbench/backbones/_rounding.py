"""Products that are fp32 outside and bfloat16 inside, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor


def rounded_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (*,W) fp32, weight (V,W), bias (V,), both constant -> (*,V) fp32.

    x and weight may be rounded to bfloat16, where that makes the processor faster, and the products
    are added in fp32; the same for the gradient of x. A bfloat16 product would round its result
    too. Plain tensors only, no torch.func.
    """
    return cast(Tensor, _Rounded.apply(x, weight, bias))


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        with _bfloat16_inside():
            return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        [weight] = ctx.saved_tensors
        with _bfloat16_inside():
            return grad @ weight, None, None


@contextmanager
def _bfloat16_inside() -> Iterator[None]:
    # A switch of the whole process, so it is turned back at once.
    switch = cast(Any, torch.backends.mkldnn).matmul
    before = switch.fp32_precision
    switch.fp32_precision = "bf16"
    try:
        yield
    finally:
        switch.fp32_precision = before
