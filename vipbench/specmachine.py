"""The words of a RunSpec that say where it is computed. No torch here."""

from __future__ import annotations

import re
from typing import Any

from vipbench import specparse as words
from vipbench.errors import UsageError

MOST_WORKERS = 256
_DEVICES = re.compile(r"cuda:\d{1,3}(,cuda:\d{1,3})*")


def device(value: Any) -> str:
    """ "auto", "cpu", "cuda", or CUDA devices by number such as "cuda:0,cuda:2", also as a list."""
    parts = [value] if isinstance(value, str) else value
    told = ""
    if isinstance(parts, list | tuple) and all(isinstance(part, str) for part in parts):
        told = ",".join(word.strip() for part in parts for word in part.split(","))
    if told not in ("auto", "cpu", "cuda") and not _DEVICES.fullmatch(told):
        raise UsageError(
            "expected 'auto', 'cpu' or 'cuda', or CUDA devices such as 'cuda:0,cuda:1', got "
            f"{words.show(value)}"
        )
    return ",".join(words.once(told.split(",")))


def cuda_numbers(device: str) -> list[int] | None:
    """The CUDA devices that `device` names by number; None where it names none."""
    if not device.startswith("cuda:"):
        return None
    return [int(part.removeprefix("cuda:")) for part in device.split(",")]


def workers(value: Any) -> int | None:
    """How many worker processes, from 1; None: as many as there are CUDA devices, else one."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_WORKERS:
        raise UsageError(
            f"expected a number of worker processes from 1 to {MOST_WORKERS}, got "
            f"{words.show(value)}"
        )
    return value
