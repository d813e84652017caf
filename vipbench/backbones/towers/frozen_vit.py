"""The forward pass of a frozen vision transformer, without a gradient and without a tap.

The same values as the library's own forward up to rounding, in less time: residuals are added by
the matrix product itself, in place; few images at a time, so that what a layer writes is still in
the processor's cache when the next one reads it; and where the first row alone is pooled, the last
block computes no other. Shapes: B images, T rows of a sequence, V width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vipbench.backbones.towers.layers import Layer
from vipbench.backbones.towers.linear import by_onednn, constant_linear, is_plain, on_cpu, through
from vipbench.backbones.towers.text import Function, attend

# On a CPU: rows of a sequence taken through the blocks at a time. What a layer of ViT-B keeps of
# them, 20 MB, is then in the last cache.
CPU_ROWS = 1600
# x·sigmoid(1.702 x), the activation of OpenAI's CLIPs, is silu(1.702 x) / 1.702.
_QUICK = 1.702
_QUICK_NAMES = ("QuickGELU", "QuickGELUActivation")


def runs(layers: Sequence[Layer]) -> bool:
    """Whether `forward` knows blocks of this kind."""
    return bool(layers) and not any(layer.post_norm for layer in layers)


def plain_context(pixels: Tensor) -> bool:
    """Whether nothing follows what happens to `pixels`: no gradient, autocast or torch.func."""
    return not (
        (torch.is_grad_enabled() and pixels.requires_grad)
        or torch.is_autocast_enabled(pixels.device.type)
        or torch._C._functorch.is_functorch_wrapped_tensor(pixels)
    )


@torch.no_grad()
def forward(
    x: Tensor, layers: Sequence[Layer], first_row: bool, leave: Callable[[Tensor], Tensor]
) -> Tensor:
    """x (B,T,V), the rows that enter block 0 -> (B,D). first_row: `leave` reads row 0 alone, and
    may be given no other."""
    parts = []
    for part in x.split(_images_at_once(x)):
        rows = part.clone(memory_format=torch.contiguous_format)
        for layer in layers[:-1]:
            _block(layer, rows, None)
        parts.append(leave(_block(layers[-1], rows, 1 if first_row else None)))
    return torch.cat(parts)


def _images_at_once(x: Tensor) -> int:
    if not on_cpu(x):
        return len(x)
    # A power of two: it divides a batch, so that all parts of one are of the same size.
    return 1 << max(0, (CPU_ROWS // x.shape[1]).bit_length() - 1)


def _block(layer: Layer, x: Tensor, rows: int | None) -> Tensor:
    """x (b,T,V), overwritten -> (b,T,V), or (b,rows,V) of the first `rows` alone."""
    h = layer.norm1(x)
    if rows is None:
        q, k, v = layer.qkv(h)
    else:
        q, k, v = layer.q(h[:, :rows]), through(layer.k, h), through(layer.v, h)
        x = x[:, :rows].contiguous()
    mixed = attend(q, k, v, layer.heads, None)
    _add(x, layer.o, mixed, layer.scale1)
    _add_network(x, layer)
    return x


def _add_network(x: Tensor, layer: Layer) -> None:
    """Add what the block's network makes of x (b,T,V) to it."""
    h = layer.norm2(x)
    if type(layer.act).__name__ in _QUICK_NAMES and is_plain(layer.fc1) and is_plain(layer.fc2):
        # The constants ride on the products, which scale at no cost.
        h = F.silu(_product(h, layer.fc1, _QUICK), inplace=True)
        _add(x, layer.fc2, h, layer.scale2, 1 / _QUICK)
    else:
        _add(x, layer.fc2, layer.act(through(layer.fc1, h)), layer.scale2)


def _product(x: Tensor, linear: Any, factor: float) -> Tensor:
    """factor · linear(x)."""
    if by_onednn(x):
        bias = None if linear.bias is None else linear.bias * factor
        return constant_linear(x * factor, linear.weight, bias)
    weight, bias, flat = linear.weight.t(), linear.bias, x.reshape(-1, x.shape[-1])
    if bias is None:
        bias, beta = flat.new_zeros(()), 0.0
    else:
        beta = factor
    out = torch.addmm(bias, flat, weight, beta=beta, alpha=factor)
    return out.reshape(*x.shape[:-1], -1)


def _add(x: Tensor, linear: Any, y: Tensor, scale: Function | None, share: float = 1.0) -> None:
    """x += scale(share · y Wᵀ + b), in place. x (b,T,V), contiguous; W, b of `linear`."""
    if is_plain(linear) and (scale is None or isinstance(scale, nn.Identity)):
        flat, y = x.view(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        if by_onednn(y):
            flat.add_(constant_linear(y, linear.weight), alpha=share)
        else:
            flat.addmm_(y, linear.weight.t(), alpha=share)
        if linear.bias is not None:
            flat.add_(linear.bias)
        return
    out = linear(y if share == 1.0 else y * share)
    x.add_(out if scale is None else scale(out))
