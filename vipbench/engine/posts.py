"""What a crew's workers are at: groups of cells, and the places where they run. No torch here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vipbench.engine.process import Worker

MEMORY_VARIABLE = "VIPBENCH_WORKER_GB"
# The share of the machine's memory that all workers together may take.
MEMORY_SHARE = 0.9


@dataclass
class Group:
    """Cells that run as one. pair: backbone and dataset, whose images and texts they share. alone:
    whether they are tried one by one, since they ended a worker together."""

    keys: list[str]
    pair: tuple[str, str]
    alone: bool = False
    deaths: int = 0
    # Turns that ended their worker before it had told what a record says of the cells.
    unbegun: int = 0
    # What their records say in any case, told by the worker before it begins.
    bases: dict[str, Mapping[str, Any]] = field(default_factory=dict)


class Desk(Protocol):
    """Where the crew hands in what it has."""

    def take(self, event: Mapping[str, Any]) -> None:
        """A finished cell, or a note."""

    def write_off(self, base: Mapping[str, Any], kind: str, message: str) -> None:
        """A cell that will have no result, of which `base` is known."""

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Those that have no record of this run."""

    def progress(self, key: str, share: float) -> None:
        """How far the group of this cell is."""


@dataclass
class Post:
    """A place for one worker, and what that is at. number: decides the device. spare: started
    while the worker is about to run into the limit, so that the next cell need not wait."""

    number: int
    worker: Worker | None = None
    spare: Worker | None = None
    group: Group | None = None
    keys: list[str] = field(default_factory=list)
    pair: tuple[str, str] | None = None
    spoilt: bool = False

    def drop(self) -> None:
        """End the worker; the spare takes its place."""
        if self.worker is not None:
            self.worker.close()
        self.worker, self.spare = self.spare, None


def too_much(used: list[tuple[int, Post]]) -> list[tuple[int, Post]]:
    """Of workers and the bytes that each takes: who is to be ended, before the system ends a
    process of its own choice, which might be the driver.

    Who takes more than `VIPBENCH_WORKER_GB`; without that, the largest where all together take
    more than a share of the machine's memory.
    """
    own = os.environ.get(MEMORY_VARIABLE)
    if own:
        return [found for found in used if found[0] > float(own) * 1e9]
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if used and sum(taken for taken, _ in used) > MEMORY_SHARE * machine:
        return [max(used, key=lambda found: found[0])]
    return []
