"""The processes that plan a run: one that loads all plugins, and one for the cells that need none.

A users' plugin may change anything of the process that has loaded it, also what is planned there.
So where there are plugins, what is built in is planned without them, in a second process beside.
A run that names nothing but what is built in imports no installed plugin at all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import vipbench
from vipbench.engine.workers.process import Worker, WorkerDiedError
from vipbench.errors import UsageError
from vipbench.plugins.files import every_source
from vipbench.runspec.run import RunSpec

# After so many workers in a row that ended before they knew the run's cells, the run ends.
MOST_STARTS = 3


class Planners:
    """To be used in a `with` block, at whose end the processes end that nobody took over.

    stop: asked several times a second; True raises Stopped.
    """

    def __init__(self, spec: RunSpec, stop: Callable[[], bool] = lambda: False) -> None:
        self._spec = spec
        self._suite = spec.to_yaml()
        self._stop = stop
        self._workers: dict[frozenset[str], Worker] = {}
        self._plans: dict[frozenset[str], dict[str, Any]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            worker.close()

    def plan(self) -> dict[str, Any]:
        """The event "plan" of all cells. Raises UsageError, Stopped."""
        everyone, nobody = frozenset(every_source(self._spec.plugins_dir)), frozenset[str]()
        builtin = [_seems_builtin(method.name) for method in self._spec.methods]
        if everyone and any(builtin):
            self._begin(nobody)
        if all(builtin) and self._spec.plugins_dir is None:
            plan = self._answer(nobody)
            if not plan["unknown"]:
                return plan
        self._begin(everyone)
        try:
            plan = self._answer(everyone)
        except UsageError as error:
            raise self._blamed(error, everyone) from error
        if everyone and any(not cell["plugins"] for cell in plan["cells"]):
            own = {_slot(cell): cell for cell in self._answer(nobody)["cells"]}
            plan["cells"] = [
                cell if cell["plugins"] else own.get(_slot(cell), cell) for cell in plan["cells"]
            ]
        return plan

    def _blamed(self, error: UsageError, everyone: frozenset[str]) -> UsageError:
        """`error`, or one that names the plugin that planning fails with and does without: whoever
        is imported can break what others do, such as the loading of a built-in backbone."""
        if not everyone or any(f"'{Path(source).stem}'" in str(error) for source in everyone):
            return error
        try:
            self._answer(frozenset())
        except UsageError:  # no plugin is at fault
            return error
        for source in sorted(everyone):
            alone = error
            if len(everyone) > 1:
                try:
                    self._answer(frozenset({source}))
                    continue
                except UsageError as found:
                    alone = found
            return UsageError(
                f"plugin '{Path(source).stem}' ({source}) breaks what a run needs when it is "
                f"imported: without it planning works, with it alone it fails: {alone}. Change "
                "nothing of torch or of vipbench at the top of a plugin; define, and register"
            )
        return error

    def ask(self, plugins: Collection[str], do: str, **arguments: Any) -> dict[str, Any]:
        """Let the worker do something that planned the cells with these plugins. Raises
        UsageError, Stopped."""
        company = frozenset(plugins)
        worker = self._workers.get(company) or max(
            self._workers.values(), key=lambda worker: len(worker.company)
        )
        try:
            return worker.ask(do, self._stop, **arguments)
        except WorkerDiedError as error:
            raise UsageError(f"planning failed: {error}") from error

    def wants(self, plugins: Collection[str], keys: Sequence[str]) -> list[dict[str, Any]]:
        """What others are to encode for the cells of a group that runs the code of `plugins`."""
        if not plugins:
            return []
        found: list[dict[str, Any]] = self.ask(plugins, "wants", keys=keys)["wants"]
        return found

    def release(self, companies: Collection[frozenset[str]]) -> list[Worker]:
        """The workers that may run cells of these companies, built-in ones first; they are the
        caller's from now on."""
        found = [self._workers.pop(c) for c in sorted(self._workers, key=len) if c in companies]
        for worker in found:
            worker.planned = True
        return found

    def _begin(self, company: frozenset[str]) -> Worker:
        worker = self._workers[company] = Worker(company)
        with suppress(WorkerDiedError):  # its answer will tell
            worker.send("plan", suite=self._suite, number=0, plugins=self._loads(company))
        return worker

    def _loads(self, company: frozenset[str]) -> list[str] | None:
        # All cells are planned by whoever loads everything.
        everyone = frozenset(every_source(self._spec.plugins_dir))
        return None if company == everyone else sorted(company)

    def _answer(self, company: frozenset[str]) -> dict[str, Any]:
        for attempt in range(MOST_STARTS):
            if company in self._plans:
                break
            try:
                worker = self._workers.get(company) or self._begin(company)
                self._plans[company] = worker.answer(self._stop)
            except WorkerDiedError as error:
                self._workers.pop(company).close()
                if attempt == MOST_STARTS - 1:
                    raise UsageError(f"planning failed: {error}") from error
        return self._plans[company]


def _slot(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(cell[name] for name in ("backbone", "dataset", "method", "shots", "seed"))


def _seems_builtin(method: str) -> bool:
    """By the name of its file: to know it, torch would have to be imported."""
    folder = Path(vipbench.__file__).parent / "methods"
    return (folder / f"{method.replace('-', '_')}.py").is_file()
