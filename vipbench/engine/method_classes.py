"""Method classes given from Python: their plugin files, trusted and checked in a new process."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vipbench import files, trust
from vipbench.engine.workers.messages import Catalogue, ListPlugins
from vipbench.engine.workers.process import Worker, WorkerDiedError
from vipbench.errors import UsageError
from vipbench.files import differs
from vipbench.plugins.closure import closure
from vipbench.plugins.files import every_source, plugin_files, require_code
from vipbench.plugins.written import Written, write_class
from vipbench.results.store.lock import take_lock
from vipbench.results.store.store import LOCK

# What was found to be the same in a new process; a notebook calls `run` many times.
_checked: set[int] = set()
_MARK = b"Written by vipbench from the class"


def named_methods(methods: Any, folder: Path, plugins_dir: Path | None) -> tuple[Any, Path | None]:
    """`methods` with names in the place of classes, and the folder of plugins that has them.

    methods: as `vipbench.run` takes it. folder: of the written files, made where it is missing; in
    a results folder they are written while no other process writes to that. plugins_dir: the run's
    own, whose plugins are copied into `folder` then. Nothing is written where no class is given.
    Raises UsageError, StoreError.
    """
    classes: dict[type, str] = {}
    named = _named(methods, classes)
    if not classes:
        return named, plugins_dir
    folder = folder.parent.resolve() / folder.name
    written = _written(classes)
    own = {}
    if plugins_dir is not None and plugins_dir.resolve() != folder.resolve():
        own = _own_plugins(plugins_dir)
    every = {**own, **{path: code for one in written for path, code in one.files.items()}}
    for one in written:
        if one.file in own and own[one.file] != one.files[one.file]:
            raise UsageError(
                f"the method class '{one.name}' needs the file name {one.file}, which a plugin in "
                f"{plugins_dir} has; give the class another `name`"
            )
        what = f"the plugin that the method class '{one.name}' was written as"
        code = [(str(folder / path), trust.sha256(data)) for path, data in one.files.items()]
        trust.name(folder / one.file)
        trust.require(what, folder / one.file, code)
    _check(dict(zip(classes, written, strict=True)))
    _save(folder, every, written)
    return named, folder


def _named(given: Any, classes: dict[type, str]) -> Any:
    """`given` with the classes' names; the classes are added to `classes`."""
    if isinstance(given, Mapping):
        return {k: _named(v, classes) if k == "name" else v for k, v in given.items()}
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [_named(one, classes) for one in given]
    # Whoever holds a class or an object of one has imported torch; others must not wait for it.
    if "vipbench.api.method" not in sys.modules:
        return given
    from vipbench.api import Method

    if isinstance(given, type):
        if not issubclass(given, Method):
            raise UsageError(
                f"the class '{given.__name__}' is not a method; expected a subclass of "
                "vipbench.api.Method, or a method's name"
            )
        if _is_registered(given):
            return given.name
        classes[given] = given.__name__
        return getattr(given, "name", given.__name__)
    if isinstance(given, Method):
        raise UsageError(
            f"methods holds an object of {type(given).__name__}; give the class itself"
        )
    return given


def _is_registered(method: type) -> bool:
    """Whether it comes with vipbench or an installed plugin, so that its name is enough."""
    package = method.__module__.partition(".")[0]
    points = [one for one in every_source().values() if not isinstance(one, Path)]
    return package == "vipbench" or package in {p.module.partition(".")[0] for p in points}


def _written(classes: Mapping[type, str]) -> list[Written]:
    found: dict[str, Written] = {}
    for cls in classes:
        one = write_class(cls)
        if one.name in found or any(one.folder == other.folder for other in found.values()):
            raise UsageError(
                f"two method classes have the name '{one.name}'; give each its own `name`"
            )
        found[one.name] = one
    return list(found.values())


def _own_plugins(folder: Path) -> dict[str, bytes]:
    """The files of a folder's plugins: path within it -> content."""
    code = require_code(plugin_files(folder), folder)
    root = folder.resolve()
    return {
        path.relative_to(root).as_posix(): content
        for contents in code.values()
        for path, content in contents.items()
        if path.is_relative_to(root)
    }


def _check(written: Mapping[type, Written]) -> None:
    """Raises UsageError for a class that is another in a new process."""
    here = {cls: closure(cls) for cls in written}
    marks = {cls: hash((tuple(written[cls].files.items()), tuple(here[cls]))) for cls in written}
    left = [cls for cls in written if marks[cls] not in _checked]
    if not left:
        return
    with tempfile.TemporaryDirectory(prefix="vipbench-") as stage, Worker() as worker:
        for cls in left:
            _put(Path(stage), written[cls].files)
        command = ListPlugins(
            plugins_dir=stage, closures={written[cls].name: written[cls].file for cls in left}
        )
        try:
            entries = worker.ask(command, Catalogue).entries
        except (UsageError, WorkerDiedError) as error:
            names = " and ".join(f"'{cls.__name__}'" for cls in left)
            raise UsageError(
                f"the method class {names} cannot be sent to the workers: what was written of it "
                f"fails in a new process: {str(error).replace(f'{stage}/', '')}"
            ) from error
    there = {e.name: e.detail.get("closure", []) for e in entries if e.kind == "method"}
    for cls in left:
        for place, what in _differences(here[cls], there.get(written[cls].name, [])):
            raise UsageError(
                f"the method class '{cls.__name__}' cannot be sent to the workers: in a new "
                f"process '{place}' differs from here ({what}). Was it changed after it was "
                "defined, or its file after it was imported? Put the change into its source, or "
                "restart Python"
            )
        _checked.add(marks[cls])


def _differences(
    here: Sequence[tuple[str, str]], there: Sequence[Sequence[str]]
) -> Iterator[tuple[str, str]]:
    for (place, what), (other, found) in zip(here, there, strict=False):
        if (place, what) != (other, found):
            yield place, f"{what} here, {found} there" if place == other else f"not {other}"
    if len(here) != len(there):
        longer = max(here, there, key=len)
        yield longer[min(len(here), len(there))][0], "one of them lacks it"


def _put(folder: Path, content: Mapping[str, bytes]) -> None:
    for path, code in content.items():
        files.make_folder((folder / path).parent, folder.parent)
        files.write(folder / path, code)


def _save(folder: Path, content: Mapping[str, bytes], written: Sequence[Written]) -> None:
    """Bring the folder up to date, of each written class without the copies of an earlier one."""
    old = {
        path.relative_to(folder).as_posix()
        for one in written
        for path in (folder / one.folder).rglob("*.py")
    } - set(content)
    new = {path: code for path, code in content.items() if differs(folder / path, code)}
    if not old and not new:
        return
    for one in written:
        there = folder / one.file
        if one.file in new and there.exists() and _MARK not in there.read_bytes()[:2000]:
            raise UsageError(
                f"the method class '{one.name}' would overwrite {there}, a file that "
                "vipbench did not write; move it away, or give the class another `name`"
            )
    lock = take_lock(folder.parent, LOCK)
    try:
        files.make_folder(folder)
        _put(folder, new)
        for path in old:
            (folder / path).unlink()
    finally:
        lock.release()
