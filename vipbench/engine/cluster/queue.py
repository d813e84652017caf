"""What an executor reports about the jobs of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vipbench.engine.cluster.folder import EncodePart


@dataclass(frozen=True)
class Job:
    """The last job of a part. state: as the executor calls it. alive: whether it will run, runs, or
    will be started again by itself. reason: why it waits."""

    state: str
    alive: bool
    node: str = ""
    reason: str = ""
    job: str = ""


class Executor(Protocol):
    """Who runs parts. resubmits: whether its jobs outlive this process, so that who comes next
    finds them."""

    resubmits: bool

    def submit(
        self, numbers: Sequence[int], memory: int = 1, encodes: Sequence[EncodePart] = ()
    ) -> str:
        """Submit parts; returns the job's id. memory: how many times as much as the run asks for.
        encodes: what is to be encoded before those of the parts begin that need it. Raises
        UsageError."""

    def jobs(self) -> dict[int, Job] | None:
        """Of each part its last job; None where that is not known now."""

    def cancel(self) -> None:
        """End all jobs of the run. Raises UsageError."""

    def close(self) -> None:
        """No more is submitted."""
