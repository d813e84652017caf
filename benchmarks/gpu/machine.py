"""What the machine is, and how fast it can be: the ceilings of all that follows."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import get_args

import torch

from benchmarks.gpu.worker import Bench, Line
from vipbench.engine.precision import feature_precision
from vipbench.runspec.values import FeaturePrecision

LIBRARIES = (
    "torch", "torchvision", "triton", "open_clip_torch", "transformers", "timm",
    "huggingface_hub", "numpy", "pillow",
)  # fmt: skip


def run(bench: Bench) -> Iterator[Line]:
    """Versions, device, products of square matrices (1e12 operations a second), copies (1e9 bytes
    a second, read and written)."""
    side, times = (256, 3) if bench.quick else (8192, 10)
    a, b = (torch.randn(side, side, device=bench.device) for _ in range(2))
    rates = {}
    for name in get_args(FeaturePrecision):
        x, y = (a.bfloat16(), b.bfloat16()) if name == "bf16" else (a, b)
        with feature_precision(name, bench.device):
            taken = bench.seconds(lambda x=x, y=y: x @ y, times, warm=3)
        rates[name] = 2 * side**3 / taken / 1e12
    block = torch.zeros((1 << 20 if bench.quick else 1 << 32), dtype=torch.uint8,
                        device=bench.device)  # fmt: skip
    other = torch.empty_like(block)
    taken = bench.seconds(lambda: other.copy_(block), times, warm=2)
    yield {
        "device": device_name(bench), "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(), "python": platform.python_version(),
        "versions": {name: installed(name) for name in LIBRARIES},
        "cuda": torch.version.cuda, "startup_s": bench.startup,
        "products_side": side, "products_tflops": rates,
        "copy_gb_s": 2 * block.numel() / taken / 1e9,
    }  # fmt: skip


def device_name(bench: Bench) -> str:
    """As PyTorch names it."""
    return torch.cuda.get_device_name(bench.device) if bench.cuda else str(bench.device)


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
