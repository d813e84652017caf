"""What the machine offers: threads and free memory."""

from __future__ import annotations

import os
from contextlib import suppress

import torch

from vipbench.api import ImageBackbone

# Below this width D of a backbone its operations are too small to be shared by threads.
SMALL_DIM = 256


def threads(backbone: ImageBackbone) -> int:
    """Threads of one operation: a tower this small only loses by more than one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    most = int(wanted) if wanted.isdigit() and int(wanted) > 0 else cores or 1
    return 1 if backbone.dim < SMALL_DIM else most


def free_memory(device: torch.device) -> int:
    """Bytes free on `device`; for a CPU, of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    with suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 4 * 1024**3
