"""Which cells of a results folder a table, comparison or figure is about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from vipbench.errors import UsageError
from vipbench.results.records.cells import Cells, cells_of
from vipbench.results.records.plan import PlannedCell
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
        datasets: str | Sequence[str] | None = None,
        backbones: str | Sequence[str] | None = None,
        methods: str | Sequence[str] | None = None,
        shots: int | str | Sequence[int | str] | None = None,
        seeds: int | str | Sequence[int] | None = None,
    ) -> Self:
        """From flags, texts with commas, or from lists. Raises UsageError."""
        found: dict[str, Any] = {}
        given: tuple[tuple[str, Any, Any], ...] = (
            ("datasets", datasets, labels),
            ("backbones", backbones, labels),
            ("methods", methods, labels),
            ("shots", shots, specparse.shots),
            ("seeds", seeds, specparse.seeds),
        )
        for name, value, read in given:
            if value is not None:
                try:
                    # 0 shots are always kept, so naming them alone asks for nothing else.
                    alone = name == "shots" and str(value).strip() in ("0", "[0]", "(0,)")
                    found[name] = (0,) if alone else read(value)
                except UsageError as error:
                    raise UsageError(f"--{name}: {error}") from None
        return cls(**found)

    def cells(
        self,
        store: Store,
        folder: str | None = None,
        planned: Sequence[PlannedCell] | None = None,
    ) -> Cells:
        """The chosen cells of `planned`, by default all that the folder was asked for. folder: what
        commands in captions call it, by default as it was given. Raises UsageError."""
        folder = str(store.out_dir) if folder is None else folder
        try:
            # What other runs left is not meant, where cells are given, rather than left out.
            found = store.pooled(self.datasets or (), planned, others=planned is None)
            every = cells_of(*found, folder)
        except TableError as error:
            raise UsageError(f"{store.out_dir}: {error}") from None
        chosen = select(every, **vars(self))
        if not chosen.planned:
            raise UsageError(f"{store.out_dir}: no cell matches all the options")
        return chosen


def labels(given: str | Sequence[str]) -> tuple[str, ...]:
    """Names in a list, or separated by commas that are not inside brackets or quotes."""
    parts = specparse.split(given) if isinstance(given, str) else given
    if not isinstance(parts, Sequence) or any(not isinstance(part, str) for part in parts):
        raise UsageError(f"expected a name, or a list of names, got {specparse.show(given)}")
    return tuple(part for part in parts if part)


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
