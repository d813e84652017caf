"""Batched functions that torch.func.vmap runs at full speed.

vmap turns an operation on one cell into one on many, one operation at a time; fused attention
has no rule for that on the CPU, and long chains of small operations get slow. A function whose
first dimension is a batch already can take many cells at once by itself: their batches are laid
one behind the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def folded(fn: Callable[..., Tensor], *inputs: Tensor, keep: bool = True) -> Tensor:
    """fn(*inputs); dimension 0 of the result and of every input is a batch of equal length.

    fn: treats the entries of the batch each by itself, in plain differentiable operations; what
        else it reads is constant.
    keep: True keeps fn's intermediate values for the gradient; False computes them again then.

    Vmapped dimensions of the inputs are folded into the batch. Gradients of gradients are not
    supported: NotImplementedError.
    """
    track = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    result: Tensor = _Folded.apply(fn, _Memory(keep and track, inputs[0].device.type), *inputs)
    return result


class _Memory:
    """What one call remembers between forward and backward."""

    def __init__(self, keep: bool, device_type: str) -> None:
        self.keep = keep
        self.kept: tuple[list[Tensor], Tensor] | None = None
        self._autocast = (
            device_type,
            torch.get_autocast_dtype(device_type),
            torch.is_autocast_enabled(device_type),
        )

    def run(
        self, fn: Callable[..., Tensor], inputs: tuple[Tensor, ...]
    ) -> tuple[list[Tensor], Tensor]:
        """fn's own graph, from fresh leaves to its result."""
        device_type, dtype, enabled = self._autocast
        with torch.enable_grad(), torch.autocast(device_type, dtype, enabled=enabled):
            leaves = [x.detach().requires_grad_() for x in inputs]
            return leaves, fn(*leaves)


class _Folded(torch.autograd.Function):
    @staticmethod
    def forward(fn: Callable[..., Tensor], memory: _Memory, *inputs: Tensor) -> Tensor:
        if not memory.keep:
            return fn(*inputs)
        memory.kept = memory.run(fn, inputs)
        return memory.kept[1].detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.fn, ctx.memory, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        # The inputs go along so that vmap sees the same batch as in the forward pass even
        # where the incoming gradient is the same for all cells.
        grads = _FoldedBackward.apply(ctx.fn, ctx.memory, grad, *ctx.saved_tensors)
        return None, None, *grads

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], fn: Any, memory: _Memory, *inputs: Tensor) -> Any:
        batch = [_fold(x, dim, info.batch_size) for x, dim in zip(inputs, in_dims[2:], strict=True)]
        result = _Folded.apply(fn, memory, *batch)
        return _unfold(result, info.batch_size), 0


class _FoldedBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        fn: Callable[..., Tensor], memory: _Memory, grad: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        kept = memory.kept
        if kept is None or kept[1].shape != grad.shape:
            kept = memory.run(fn, inputs)
        leaves, result = kept
        # Kept for a second loss over the same features; it goes with `memory`.
        return torch.autograd.grad(result, leaves, grad, retain_graph=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError("the towers give first derivatives only")

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], fn: Any, memory: _Memory, *tensors: Tensor
    ) -> Any:
        batch = [
            _fold(x, dim, info.batch_size) for x, dim in zip(tensors, in_dims[2:], strict=True)
        ]
        grads = _FoldedBackward.apply(fn, memory, *batch)
        return tuple(_unfold(g, info.batch_size) for g in grads), (0,) * len(grads)


def _fold(x: Tensor, dim: int | None, size: int) -> Tensor:
    """(n, *) with a vmapped dimension `dim` of `size` -> (size·n, *)."""
    x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return x.flatten(0, 1)


def _unfold(x: Tensor, size: int) -> Tensor:
    """(size·n, *) -> (size, n, *)."""
    return x.reshape(size, -1, *x.shape[1:])
