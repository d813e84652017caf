"""`vipbench fetch`: download weights and data before a run."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vipbench.cli.exit_codes import FAILED, OK, USAGE
from vipbench.cli.terminal import raw
from vipbench.errors import UsageError
from vipbench.fetching import FetchError, Needed
from vipbench.fetching.download import size
from vipbench.runspec.run import RunSpec
from vipbench.runspec.values import labelled
from vipbench.text import clean

if TYPE_CHECKING:
    from vipbench.plugins.registry import Registry

BY_HAND, FAILURE = USAGE, FAILED


def sources_of(
    what: Sequence[str], data_root: Path | None, plugins_dir: Path | None
) -> tuple[list[str], Path | None, Path | None]:
    """The sources that arguments name, a suite's among them, and the folders of data and plugins,
    which a suite may name. Raises UsageError."""
    sources: list[str] = []
    for item in what:
        if Path(item).suffix not in (".yaml", ".yml"):
            sources.append(item)
            continue
        suite = RunSpec.from_yaml(Path(item))
        sources += [*(labelled(b)[1] for b in suite.backbones), *suite.datasets]
        data_root = data_root or suite.data_root
        plugins_dir = plugins_dir or suite.plugins_dir
    return list(dict.fromkeys(sources)), data_root, plugins_dir


def fetch_command(
    what: Sequence[str], data_root: Path | None, plugins_dir: Path | None, offline: bool
) -> int:
    """Bring everything, each as far as it goes; returns the exit status. Raises UsageError for
    names that nothing has, before anything is fetched."""
    from vipbench.plugins.registry import load_registry

    sources, data_root, plugins_dir = sources_of(what, data_root, plugins_dir)
    registry = load_registry(plugins_dir)
    for source in sources:
        registry.check_source(source)
    statuses = []
    for source in sources:
        if source.partition(":")[0] in registry.backbones:
            statuses.append(_all(source, registry.files(source), offline))
        else:
            statuses.append(_dataset(registry, source, data_root, offline))
    bad = [status for status in statuses if status != OK]
    if bad:
        print(f"vipbench: {len(bad)} of {len(statuses)} missing, see above", file=sys.stderr)
    return max(statuses)


def _dataset(registry: Registry, source: str, root: Path | None, offline: bool) -> int:
    from vipbench.api import DataError

    dataset = registry.dataset(source)[0]
    needed = list(dataset.files(root))
    if needed:
        return _all(source, needed, offline)
    try:
        place = dataset.locate(root)
    except DataError as error:
        print(f"{source}: cannot be fetched: {error}")
        return BY_HAND
    print(f"{source}: {'needs no file' if place is None else f'present: {place}'}")
    return OK


def _all(source: str, needed: Iterable[Needed], offline: bool) -> int:
    """Every file of a source, one after another; whatever is missing ends it."""
    count, licence = 0, ""
    try:
        for one in needed:
            count += 1
            if one.licence != licence and one.licence:
                licence = one.licence
                print(f"{source}: licence: {clean(licence)}")
            _one(source, one, offline)
    except FetchError as error:
        print(f"{source}: {error}")
        return FAILURE
    except UsageError as error:
        print(f"{source}: cannot be fetched: {error}")
        return BY_HAND
    if not count:
        print(f"{source}: has no file to fetch")
    return OK


def _one(source: str, one: Needed, offline: bool) -> None:
    there, damage = one.find(), one.damage()
    if damage:
        print(f"{source}: {one.what} is damaged: {damage}")
    elif there is not None and offline:
        print(f"{source}: {one.what} present: {there}")
        return
    if offline:
        wrong = "is damaged" if damage else "is missing"
        raise FetchError(
            f"{one.what} {wrong}; looked for it in {', '.join(one.places())}. "
            f"`vipbench fetch {source}` without --offline downloads it"
        )
    shown = _Shown(one.what)
    path = one.fetch(shown)
    shown.end()
    done = "present" if there is not None and not damage else "fetched"
    print(f"{source}: {one.what} {done}: {path} ({size(path.stat().st_size)})")


class _Shown:
    """Progress on a terminal, in one line that is written over."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._last = 0.0
        self._live = sys.stderr.isatty()

    def __call__(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if self._live and now - self._last > 0.2:
            self._last = now
            of = "" if total is None else f" of {size(total)}, {100 * done / max(total, 1):.0f} %"
            raw(sys.stderr).write(f"\r\x1b[K{clean(self._what, 50)}: {size(done)}{of}")
            sys.stderr.flush()

    def end(self) -> None:
        """Take the line away."""
        if self._live and self._last:
            raw(sys.stderr).write("\r\x1b[K")
