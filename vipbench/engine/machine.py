"""What the machine offers, and a worker's share of it: devices, threads, free memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vipbench.api import ImageBackbone
from vipbench.engine import memory
from vipbench.errors import UsageError
from vipbench.runspec.run import RunSpec
from vipbench.runspec.values import UNTESTED_DEVICES, cuda_numbers

# Below this width D of a backbone its operations are too small to be shared by threads.
SMALL_DIM = 256


@dataclass(frozen=True)
class Share:
    """How a run's workers share the machine. devices: CUDA devices by number. kind: where
    there are none, "cpu" or one of UNTESTED_DEVICES."""

    workers: int = 1
    devices: tuple[int, ...] = ()
    kind: str = "cpu"

    def device(self, number: int) -> torch.device:
        """Where worker `number` computes; its process's CUDA calls go there, too."""
        if not self.devices:
            # With the number that its tensors have.
            return torch.device("cpu") if self.kind == "cpu" else torch.device(self.kind, 0)
        chosen = self.devices[number % len(self.devices)]
        torch.cuda.set_device(chosen)
        return torch.device("cuda", chosen)

    @classmethod
    def of(
        cls, device: str, workers: int | None, there: int, untested: tuple[str, ...] = ()
    ) -> Share:
        """What `device` and `workers` of a RunSpec come to where `there` CUDA devices are, and
        `untested` ones. Raises UsageError."""
        if device in UNTESTED_DEVICES:
            if device not in untested:
                raise UsageError(
                    f"--device {device}: PyTorch {torch.__version__} finds no such device; use "
                    f"--device cpu or auto"
                )
            return cls(workers or 1, kind=device)
        named = cuda_numbers(device)
        if (device == "cuda" or named is not None) and there == 0:
            raise UsageError(
                f"--device {device}: no CUDA device is available; use --device cpu or auto"
            )
        for number in named or ():
            if number >= there:
                has = "cuda:0 alone" if there == 1 else f"cuda:0 to cuda:{there - 1}"
                raise UsageError(f"--device {device}: there is no cuda:{number}; there is {has}")
        devices = () if device == "cpu" else tuple(range(there) if named is None else named)
        return cls(workers or max(1, len(devices)), devices)

    @property
    def on_device(self) -> int:
        """The most workers of one device."""
        return -(-self.workers // max(1, len(self.devices)))

    @property
    def description(self) -> str:
        """The devices in use."""
        used = self.devices[: self.workers]
        return ",".join(f"cuda:{number}" for number in used) or kind_name(self.kind)


def share(spec: RunSpec) -> Share:
    """The devices of a run and the number of its workers. Raises UsageError."""
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Share.of(spec.device, spec.workers, there, untested())


def untested() -> tuple[str, ...]:
    """Those of UNTESTED_DEVICES that PyTorch can use here."""
    there = {"mps": torch.backends.mps.is_available(), "xpu": torch.xpu.is_available()}
    return tuple(name for name in UNTESTED_DEVICES if there[name])


def kind_name(kind: str) -> str:
    """A device's type for users; it marks devices on which vipbench was never tested."""
    return f"{kind} (not tested)" if kind in UNTESTED_DEVICES else kind


def cores(workers: int = 1) -> int:
    """Usable cores of each of so many workers, at least one."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (found or 1) // workers)


def threads(backbone: ImageBackbone, workers: int = 1) -> int:
    """Threads of one operation, where so many workers share the cores: a tower this small only
    loses by more than one."""
    own = cores(workers)
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    most = min(int(wanted), own) if wanted.isdigit() and int(wanted) > 0 else own
    return 1 if backbone.dim < SMALL_DIM else most


def free_memory(device: torch.device) -> int:
    """Bytes free on `device`, those included that PyTorch keeps for later use; without memory of
    its own, of the machine or job."""
    if device.type not in ("cuda", "xpu"):
        return memory.free()
    module: Any = torch.get_device_module(device)
    try:
        free = module.mem_get_info(device)[0]
    except RuntimeError:
        if device.type == "cuda":
            raise
        return memory.free()  # not every driver of Intel's tells
    return int(free + module.memory_reserved(device) - module.memory_allocated(device))


def sent(value: Tensor, device: torch.device) -> Tensor:
    """`value`, made on the CPU, on `device`; the CPU does not wait for a GPU of CUDA to have it."""
    if device.type == "cuda":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


def wait(device: torch.device) -> None:
    """Until `device` has done what it was given: its operations may outlast the calls that began
    them."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def is_lost(device: torch.device) -> bool:
    """Whether nothing works any more on a device in this process, as after a failed assertion or a
    wrong address in a kernel of CUDA."""
    try:
        wait(device)
    except RuntimeError:
        return True
    return False
