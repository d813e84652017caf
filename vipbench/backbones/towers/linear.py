"""Products with a constant matrix, by whichever of PyTorch's libraries is the faster one.

On a CPU PyTorch multiplies fp32 matrices with MKL, which uses AVX-512 on Intel's processors alone.
oneDNN, which PyTorch has for convolutions and bfloat16, uses it on AMD's too, and takes fp32
matrices by the operation of PyTorch's compiler. It adds in another order, so results differ by
rounding. Where the operation is missing, and with VIPBENCH_ONEDNN=0, MKL multiplies.
Shapes: * any leading dimensions, W inputs, V outputs.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

VARIABLE = "VIPBENCH_ONEDNN"


def constant_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, rounded: bool = False
) -> Tensor:
    """x (*,W), weight (V,W), bias (V,), both constant, in fp32 or both in half precision -> (*,V).

    rounded: on a CPU, fp32 factors may be rounded to bfloat16 inside, where that is faster; sums
    and results stay fp32, the gradient's too. A bfloat16 product would round its result as well.
    Plain tensors only, no torch.func.
    """
    trained = weight.requires_grad or (bias is not None and bias.requires_grad)
    if torch.is_grad_enabled() and trained:
        return F.linear(x, weight, bias)  # not constant after all
    onednn = by_onednn(x)
    if not onednn and not rounded:
        return F.linear(x, weight, bias)
    multiply = _onednn if onednn else _rounded
    # A torch.func may be at work around tensors that it knows nothing of; it would refuse this.
    if not (torch.is_grad_enabled() and x.requires_grad):
        return multiply(x, weight, bias)
    return cast(Tensor, _Product.apply(multiply, x, weight, bias))


def through(linear: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """linear(x), where nothing is trained. Plain tensors only, no torch.func."""
    if is_plain(linear):
        return constant_linear(x, linear.weight, linear.bias)
    return linear(x)


def is_plain(linear: Callable[[Tensor], Tensor]) -> TypeGuard[nn.Linear]:
    """Whether it does what its weight and bias say, and no more."""
    if not isinstance(linear, nn.Linear) or type(linear).forward is not nn.Linear.forward:
        return False
    # A forward pass of its own, or hooks before and behind it.
    return not ("forward" in vars(linear) or linear._forward_hooks or linear._forward_pre_hooks)


def on_cpu(x: Tensor) -> bool:
    """Whether `x` is computed on by a CPU: other devices take other paths."""
    return x.device.type == "cpu"


def by_onednn(x: Tensor) -> bool:
    """Whether oneDNN is to multiply `x` by a constant; never under autocast, which it ignores."""
    fitting = on_cpu(x) and x.dtype == torch.float32 and x.numel() > 0
    return fitting and _faster() and not torch.is_autocast_enabled("cpu")


@functools.cache
def _faster() -> bool:
    if os.environ.get(VARIABLE) == "0" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    tell: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    can = tell()
    return "AMD" in can.get("cpu_name", "") and bool(can.get("avx512_f"))


_Multiply = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, multiply: _Multiply, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.multiply = multiply
        ctx.save_for_backward(weight)
        return multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        [weight] = ctx.saved_tensors
        return None, ctx.multiply(grad, weight.t(), None), None, None


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def _rounded(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    with _bfloat16_inside():
        return F.linear(x, weight, bias)


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
