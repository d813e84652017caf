"""The hooks that a vipbench plugin implements (pluggy).

A plugin is a module with functions marked `@vipbench.hookimpl`:

    import vipbench

    @vipbench.hookimpl
    def register_methods(register):
        register(MyMethod)

A module without hooks registers the method classes that it defines, except those whose names begin
with an underscore, as most built-in methods do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    from vipbench.api import Dataset, ImageBackbone, Method
    from vipbench.fetching import Needed

hookspec = pluggy.HookspecMarker("vipbench")
hookimpl = pluggy.HookimplMarker("vipbench")


class RegisterMethod(Protocol):
    """Takes a Method class; its `name` is the command-line word."""

    def __call__(self, method: type[Method]) -> None:
        """Register `method`."""


class RegisterBackbone(Protocol):
    """Takes a name and a factory. `name:ARG` on the command line calls `factory("ARG")`, a bare
    `name` calls `factory(None)`. `help` is one line for `vipbench list`.

    files: the files that `vipbench fetch name:ARG` downloads and `vipbench doctor` looks for, in
    order; the iterator is advanced only when the file before is present. known: sources (`name` or
    `name:ARG`) that `vipbench doctor` checks by default. suggest: the sources that an unknown name
    may mean, for the error message.
    """

    def __call__(
        self,
        name: str,
        factory: Callable[[str | None], ImageBackbone],
        help: str = "",
        files: Callable[[str | None], Iterable[Needed]] | None = None,
        known: Sequence[str] = (),
        suggest: Callable[[str], Iterable[str]] | None = None,
    ) -> None:
        """Register `factory` as `name`."""


class RegisterDataset(Protocol):
    """Takes a name and a factory, like RegisterBackbone; the dataset itself names its files
    (`Dataset.files`, `Dataset.locate`)."""

    def __call__(
        self,
        name: str,
        factory: Callable[[str | None], Dataset],
        help: str = "",
        known: Sequence[str] = (),
    ) -> None:
        """Register `factory` as `name`."""


@dataclass(frozen=True)
class TrackedRun:
    """A run as a tracker sees it. folder: OUT/tracking/NAME, which exists. settings: the run's keys
    and values, as in a suite."""

    folder: Path
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class TrackedCell:
    """A finished or failed cell as a tracker sees it.

    key: of its record. title: "METHOD on DATASET with BACKBONE, K shots, seed N". folder:
    OUT/tracking/NAME/CELL, which exists and is empty except for what the hook writes. settings:
    backbone, dataset, method, shots, seed, hyperparameters and protocol, flat. epochs: (epoch,
    counted from 1, {"loss": ..., "support_accuracy": ..., "val_accuracy": ..., "gradient_norm":
    ...}) as far as they were recorded; empty for methods without epochs. metrics: on the test
    images; those of a class are called `NAME/CLASS`; empty if the cell failed. error: why it
    failed, or None. created: when, in seconds since 1970. record: the whole record.
    """

    key: str
    title: str
    folder: Path
    settings: Mapping[str, str | int | float | bool | None]
    epochs: Sequence[tuple[int, Mapping[str, float]]]
    metrics: Mapping[str, float]
    error: str | None
    created: float
    record: Mapping[str, Any]


@hookspec
def on_run_start(run: TrackedRun) -> None:
    """Called before the first cell of a run that names this plugin's tracker."""


@hookspec
def on_cell_done(run: TrackedRun, cell: TrackedCell) -> None:
    """Called once for each cell whose record is on disk, from this run or an earlier one in the
    same folder."""


@hookspec
def on_run_end(run: TrackedRun) -> None:
    """Called at the end of the run, also when it is interrupted."""


TRACKER_HOOKS = ("on_run_start", "on_cell_done", "on_run_end")


@hookspec
def register_methods(register: RegisterMethod) -> None:
    """Register methods: call `register(MethodClass)` once for each."""


@hookspec
def register_backbones(register: RegisterBackbone) -> None:
    """Register backbones: call `register(name, factory, help=...)` once for each."""


@hookspec
def register_datasets(register: RegisterDataset) -> None:
    """Register datasets: call `register(name, factory, help=...)` once for each."""
