"""Backbones of a library, which is imported when a model of it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

from vipbench.errors import UsageError
from vipbench.fetching import Needed

Files = Callable[[str | None], Iterable[Needed]]


def library(name: str, forms: str) -> tuple[Callable[[str | None], Any], Files]:
    """The factory of the backbone `name`, and what its models need on the disk:
    `load_NAME(argument)` and `NAME_files(argument)` of `loading/NAME.py`. forms: how a model is
    named."""

    def call(function: str, argument: str | None) -> Any:
        """Raises UsageError for what is unknown, cannot be fetched, or does not fit."""
        if not argument:
            raise UsageError(f"the backbone '{name}' needs a model: {forms}")
        return getattr(import_module(f"vipbench.backbones.loading.{name}"), function)(argument)

    return (
        lambda argument: call(f"load_{name}", argument),
        lambda argument: call(f"{name}_files", argument),
    )
