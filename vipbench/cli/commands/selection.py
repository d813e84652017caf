"""Which cells of a results folder a table, comparison or figure is about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from vipbench.errors import UsageError
from vipbench.results.records.cells import Cells, cells_of
from vipbench.results.stats.pairing import select
from vipbench.results.store.store import Store
from vipbench.results.tables import TableError
from vipbench.runspec import values as specparse
from vipbench.runspec.run import SUITE_NAME, RunSpec


@dataclass(frozen=True)
class Selection:
    """None takes everything."""

    datasets: tuple[str, ...] | None = None
    backbones: tuple[str, ...] | None = None
    methods: tuple[str, ...] | None = None
    shots: tuple[int | str, ...] | None = None
    seeds: tuple[int, ...] | None = None

    @classmethod
    def of(
        cls,
        datasets: str | None = None,
        backbones: str | None = None,
        methods: str | None = None,
        shots: str | None = None,
        seeds: str | None = None,
    ) -> Self:
        """From flags. Raises UsageError."""
        found: dict[str, Any] = {}
        for name, value, read in (
            ("datasets", datasets, labels),
            ("backbones", backbones, labels),
            ("methods", methods, labels),
            ("shots", shots, specparse.shots),
            ("seeds", seeds, specparse.seeds),
        ):
            if value is not None:
                try:
                    # 0 shots are always kept, so naming them alone asks for nothing else.
                    alone = name == "shots" and value.strip() == "0"
                    found[name] = (0,) if alone else read(value)
                except UsageError as error:
                    raise UsageError(f"--{name}: {error}") from None
        return cls(**found)

    def cells(self, store: Store, folder: str | None = None) -> Cells:
        """The chosen cells of what the folder was asked for. folder: what commands in captions call
        it, by default as it was given. Raises UsageError."""
        folder = str(store.out_dir) if folder is None else folder
        try:
            every = cells_of(store.records(history=False), store.plan(), folder)
        except TableError as error:
            raise UsageError(f"{store.out_dir}: {error}") from None
        found = select(every, **vars(self))
        if not found.planned:
            raise UsageError(f"{store.out_dir}: no cell has all of what was asked for")
        return found


def labels(text: str) -> tuple[str, ...]:
    """Names separated by commas that are not inside brackets or quotes."""
    return tuple(part for part in specparse.split(text) if part)


@contextmanager
def opened(folder: Path) -> Iterator[Store]:
    """The folder's results, to be read; a TableError is one of usage."""
    try:
        with Store(folder, readonly=True) as store:
            yield store
    except TableError as error:
        raise UsageError(f"{folder}: {error}") from None


def title_of(folder: Path) -> str | None:
    """The title of the folder's last run, where its suite file can be read."""
    try:
        return RunSpec.from_yaml(folder / SUITE_NAME).title
    except UsageError:
        return None
