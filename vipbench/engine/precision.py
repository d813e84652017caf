"""How exactly fp32 tensors are multiplied: the engine alone decides it.

PyTorch has switches for TF32 and bfloat16 inside fp32 products, for its whole process, and so have
the libraries below it, by the environment (workers start without those variables). By default its
convolutions on CUDA use TF32. Plugins may set any switch, so all are set again before each call
that gives numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vipbench.errors import UsageError
from vipbench.runspec.values import FeaturePrecision


class PrecisionError(RuntimeError):
    """A plugin changed how exactly its process multiplies."""


def use_exact_products() -> None:
    """From now on products of fp32 tensors are exact up to fp32's rounding."""
    _set_precision("ieee")


def require_exact_products(who: str) -> None:
    """Raises PrecisionError where they are not exact any more."""
    if all(switch.fp32_precision == "ieee" for switch in _switches()):
        return
    use_exact_products()
    raise PrecisionError(
        f"{who} changed the precision of products of fp32 tensors (torch.backends, "
        "torch.set_float32_matmul_precision); only --precision and --feature-precision of the run "
        "set it"
    )


@contextmanager
def feature_precision(name: FeaturePrecision, device: torch.device) -> Iterator[None]:
    """In the block images are encoded in this precision: fp32, fp32 tensors with factors rounded to
    TF32 (CUDA alone), or bfloat16 products by autocast. After it products are exact."""
    _set_precision("tf32" if name == "tf32" else "ieee")
    try:
        # "fp32" also ends an autocast that a plugin began.
        with torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16"):
            yield
    finally:
        use_exact_products()


def require(name: FeaturePrecision, device: torch.device) -> None:
    """Raises UsageError where `device` has no such precision."""
    if name == "tf32" and device.type != "cuda":
        raise UsageError(
            f"--feature-precision tf32 needs a CUDA device, and the run computes on {device.type}; "
            "use fp32 or bf16"
        )


def _set_precision(cuda: str) -> None:
    # By the older switches first: where the two kinds disagree, PyTorch refuses to read the older.
    torch.backends.cuda.matmul.allow_tf32 = cuda == "tf32"
    torch.backends.cudnn.allow_tf32 = cuda == "tf32"
    for number, switch in enumerate(_switches()):
        switch.fp32_precision = cuda if number < 3 else "ieee"


def _switches() -> list[Any]:
    """Three of CUDA's, then the CPU's."""
    cuda, cudnn, cpu = (getattr(torch.backends, name) for name in ("cuda", "cudnn", "mkldnn"))
    return [cuda.matmul, cudnn.conv, cudnn.rnn, cpu.matmul, cpu.conv, cpu.rnn]
