"""The hooks that a vipbench plugin implements (pluggy).

A plugin is a module with functions marked `@vipbench.hookimpl`:

    import vipbench

    @vipbench.hookimpl
    def register_methods(register):
        register(MyMethod)

A module without any of them registers the method classes that it defines, but for those whose
names begin with an underscore; most built-in methods do so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

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

    files: what `vipbench fetch name:ARG` brings, and `vipbench doctor` looks for, one after
    another; the next is asked for once the one before is there. known: sources (`name` or
    `name:ARG`) that `vipbench doctor` looks for unasked. suggest: the sources that an unknown
    word may mean, for the error message."""

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
    """Takes a name and a factory, as RegisterBackbone does; what is fetched says the dataset
    itself (`Dataset.files`, `Dataset.locate`)."""

    def __call__(
        self,
        name: str,
        factory: Callable[[str | None], Dataset],
        help: str = "",
        known: Sequence[str] = (),
    ) -> None:
        """Register `factory` as `name`."""


@hookspec
def register_methods(register: RegisterMethod) -> None:
    """Register methods: call `register(MethodClass)` once for each."""


@hookspec
def register_backbones(register: RegisterBackbone) -> None:
    """Register backbones: call `register(name, factory, help=...)` once for each."""


@hookspec
def register_datasets(register: RegisterDataset) -> None:
    """Register datasets: call `register(name, factory, help=...)` once for each."""
