"""The processes that plan a run: one that loads all plugins, and one for the cells that need none.

A plugin may change anything of the process that has loaded it, also what is planned there.
So where there are plugins, what is built in is planned without them, in a second process beside.
Where planning fails with all plugins, or gives other built-in cells than without them, it is done
anew with each of them alone.
A run that names nothing but what is built in imports no installed plugin at all; where it names
models with code of their own, each of these is planned alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Self

import vipbench
from vipbench.engine.workers.messages import Command, FindWants, MakePlan, Plan, Want, Wants
from vipbench.engine.workers.process import Answer, Worker, WorkerDiedError
from vipbench.errors import UsageError
from vipbench.plugins.files import every_source
from vipbench.results.records.plan import PlannedCell
from vipbench.results.records.protocol_names import split_fold
from vipbench.runspec.run import RunSpec
from vipbench.runspec.values import labelled
from vipbench.trust import REMOTE

NOBODY = frozenset[str]()
EVERYONE = None
# What a worker loads: these plugins and only their cells, or all plugins.
_Loads = frozenset[str] | None
# After so many workers in a row that ended before they knew the run's cells, the run ends.
MOST_STARTS = 3


class Planners:
    """To be used in a `with` block, at whose end the processes end that nobody took over.

    stop: asked several times a second; True raises Stopped.
    """

    def __init__(self, spec: RunSpec, stop: Callable[[], bool] = lambda: False) -> None:
        self._spec = spec
        self._stop = stop
        self._sources = frozenset(every_source(spec.plugins_dir))
        self._workers: dict[_Loads, Worker] = {}
        self._failed: set[frozenset[str]] = set()  # whose workers ended when they were asked
        self._plans: dict[_Loads, Plan] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            worker.close()

    def plan(self) -> Plan:
        """The plan of all cells; `broken` says of each plugin that cannot be planned with
        what of the run is left out for it. Raises UsageError, Stopped."""
        builtin = [_seems_builtin(method.name) for method in self._spec.methods]
        models = {backbone for backbone in self._spec.backbones if backbone.endswith(REMOTE)}
        if (self._sources or models) and any(builtin):
            self._begin(NOBODY)
        if all(builtin) and self._spec.plugins_dir is None:
            for model in sorted(models)[:1]:
                self._begin(frozenset({model}))
            plan = self._answer(NOBODY)
            further = {name for lack in plan.lacks for name in lack.backbones}
            if not plan.unknown and all(name.endswith(REMOTE) for name in further):
                if not (models or further):
                    return plan
                self._sources = frozenset(models)
                return self.apart()
        self._sources |= models
        self._begin(EVERYONE)
        try:
            plan = self._answer(EVERYONE)
        except UsageError as error:
            if not self._sources:
                raise
            return self.apart(error)
        if plan.loaded and (any(builtin) or any(not cell.plugins for cell in plan.cells)):
            own = {cell.slot: cell for cell in self._answer(NOBODY).cells}
            given = {cell.slot: cell for cell in plan.cells}
            if len(plan.loaded) > 1 and not own.items() <= given.items():
                return self.apart(joint=plan)
            plan = plan.model_copy(update={"cells": list((given | own).values())})
        if lost := self._lost(plan.cells, plan.broken) if plan.loaded else []:
            if len(plan.loaded) > 1:
                return self.apart(joint=plan)
            if not plan.cells:
                raise UsageError("; ".join(lost))
            plan = plan.model_copy(update={"broken": [*plan.broken, *lost]})
        return plan

    def apart(self, error: UsageError | None = None, joint: Plan | None = None) -> Plan:
        """The plan without a process that loads all plugins, or where such a one gave `error`, or
        the plan `joint`, which does not hold: whoever is imported can change what others do, such
        as the loading of a built-in backbone. Each plugin set has a process of its own, and those
        that cannot plan cost their own cells. Raises `error` where no plugin is at fault."""
        self._end(EVERYONE)
        plans = {NOBODY: self._answer(NOBODY)}
        broken: dict[frozenset[str], UsageError] = {}

        def add(plugin_set: frozenset[str]) -> None:
            try:
                plans[plugin_set] = self._answer(plugin_set)
            except UsageError as found:
                broken[plugin_set] = found

        owners: dict[str, frozenset[str]] = {}
        for source in sorted(self._sources):
            add(plugin_set := frozenset({source}))
            for name in plans[plugin_set].registered if plugin_set in plans else ():
                if name in owners:
                    who = " and ".join(sorted(owners[name] | plugin_set))
                    raise error or UsageError(f"{who} both register the {name}; rename one")
                owners[name] = plugin_set
        lacking = {name for name in plans[NOBODY].unknown if name not in owners}
        if error and not broken and any(name in str(error) for name in lacking):
            raise error
        while waiting := self._plugin_sets(owners, lacking, plans.values()) - {*plans, *broken}:
            for plugin_set in sorted(waiting, key=sorted):
                add(plugin_set)
        further = {b for plan in plans.values() for lack in plan.lacks for b in lack.backbones}
        lacking |= {name for name in further if not name.endswith(REMOTE) and name not in owners}
        cells = [cell for plan in plans.values() for cell in plan.cells]
        if error and len({cell.slot for cell in cells}) < len(cells):
            raise error
        cells = list({cell.slot: cell for cell in reversed(cells)}.values())[::-1]
        cells.sort(key=lambda cell: self._spec.backbones.index(cell.group.partition("\x1f")[0]))
        places = {cell.slot: place for place, cell in enumerate(joint.cells if joint else ())}
        cells.sort(key=lambda cell: places.get(cell.slot, len(places)))
        lines = [_broken_line(plugin_set, found) for plugin_set, found in broken.items()]
        if lacking:
            names = ", ".join(sorted(lacking))
            line = f"left out, since no working plugin registers it: {names}"
            idle = (c for c, plan in plans.items() if len(c) == 1 and not plan.registered)
            files = ", ".join(Path(s).name for c in idle for s in c if not s.endswith(REMOTE))
            lines.append(f"{line} ({files} registers nothing)" if files else line)
        lines += self._lost(cells, lines)
        if lines and not cells:
            alone = len(lines) == len(broken) == 1
            raise next(iter(broken.values())) if alone else UsageError("; ".join(lines))
        notices = list(dict.fromkeys(note for p in plans.values() for note in p.notices))
        if not lines and (error or joint):
            why = error or "importing a plugin changes what others plan"
            notices.append(f"each plugin is planned alone: {why}")
        texts = [one for plan in plans.values() for one in plan.texts]
        changes = {"cells": cells, "notices": notices, "texts": texts, "broken": lines}
        return plans[NOBODY].model_copy(update=changes)

    def _lost(self, cells: Collection[PlannedCell], broken: Collection[str]) -> list[str]:
        """A sentence on what the run names and no cell is of, possible or not, though no line of
        `broken` names it: a plugin can change the planning itself."""
        names = [
            f"method '{method.name}'"
            for method in self._spec.methods
            # A method that reads texts has a label for each kind of knowledge and set of texts.
            if not any(
                cell.method_name == method.name and f"{cell.method} ".startswith(f"{method.label} ")
                for cell in cells
            )
        ]
        groups = [cell.group.split("\x1f") for cell in cells]
        used = {group[0] for group in groups}
        names += [f"backbone '{name}'" for name in self._spec.backbones if name not in used]
        names = [name for name in names if not any(name in line for line in broken)]
        datasets = {split_fold(group[1])[0] for group in groups}
        few = len(datasets) < len(self._spec.datasets) and not self._spec.protocol.transfers
        if cells and few and not (names or broken):  # the driver does not know their names
            names = [f"some of the datasets {', '.join(self._spec.datasets)}"]
        if not names:
            return []
        files = ", ".join(sorted(Path(source).name for source in self._sources))
        return [
            f"left out, since planning with the plugins ({files}) gives no cell: {', '.join(names)}"
            ". A plugin must not change how vipbench plans"
        ]

    def _plugin_sets(
        self,
        owners: Mapping[str, frozenset[str]],
        lacking: Collection[str],
        plans: Iterable[Plan],
    ) -> set[frozenset[str]]:
        """Whose code cells run of methods, datasets and backbones of different plugins. owners:
        who registers what is not built in. lacking: what nobody registers."""

        def own(kind: str, sources: Iterable[str]) -> list[frozenset[str]]:
            names = {source: f"{kind} '{_family(kind, source)}'" for source in sources}
            alone = {source: frozenset({source}) for source in self._sources if kind == "backbone"}
            return [
                owners.get(name) or alone.get(source, NOBODY)
                for source, name in names.items()
                if name not in lacking
            ]

        datasets = own("dataset", self._spec.datasets)
        # Under some protocols a cell reads two.
        pairs = [*map(_union, product(datasets, repeat=2 if self._spec.protocol.transfers else 1))]
        methods = own("method", (method.name for method in self._spec.methods))
        backbones = own("backbone", self._spec.backbones)
        found = set(map(_union, product(methods, pairs, backbones)))
        for plan in plans:
            for lack in plan.lacks:
                names = [n for n in lack.backbones if n in owners or n.endswith(REMOTE)]
                found.add(frozenset(lack.plugins).union(*(owners.get(n) or {n} for n in names)))
        return found

    def ask(self, plugins: Collection[str], command: Command, expected: type[Answer]) -> Answer:
        """Let the worker do something that planned the cells with these plugins. Raises
        UsageError, Stopped."""
        loads = self._planner(plugins)
        try:
            return self._workers[loads].ask(command, expected, self._stop)
        except WorkerDiedError as error:
            self._end(loads)
            raise UsageError(f"planning failed: {error}") from error

    def wants(self, plugins: Collection[str], keys: Sequence[str]) -> tuple[Want, ...]:
        """What others are to encode for the cells of a group that runs the code of `plugins`;
        nothing where that code fails, which the run of the cells will say."""
        plugin_set = frozenset(plugins)
        found: tuple[Want, ...] = ()
        if plugin_set and plugin_set not in self._failed:
            try:
                found = self.ask(plugin_set, FindWants(keys=tuple(keys)), Wants).wants
            except UsageError:
                self._failed.add(plugin_set)
        return found

    def _planner(self, plugins: Collection[str]) -> _Loads:
        """The worker that planned the cells with these plugins; another where that was ended."""
        plugin_set = frozenset(plugins)
        loads = (
            EVERYONE if EVERYONE in self._plans and plugin_set not in self._plans else plugin_set
        )
        if loads not in self._workers:
            del self._plans[loads]
            self._answer(loads)
        return loads

    def release(self, plugin_sets: Collection[frozenset[str]]) -> list[Worker]:
        """The workers that may run cells of these plugin sets, built-in ones first; they are the
        caller's from now on."""
        found: dict[frozenset[str], Worker] = {}
        for loads in [*self._workers]:
            if loads not in self._plans:
                continue
            plugin_set = frozenset(self._plans[loads].loaded)
            if plugin_set in plugin_sets and plugin_set not in found:
                found[plugin_set] = worker = self._workers.pop(loads)
                worker.plugin_set, worker.planned = plugin_set, True
        return [found[plugin_set] for plugin_set in sorted(found, key=len)]

    def _begin(self, loads: _Loads) -> Worker:
        # A run begins with one worker at work and one that waits; more take memory for nothing.
        for old in [old for old in self._workers if old][: max(0, len(self._workers) - 1)]:
            self._end(old)
        worker = self._workers[loads] = Worker(most=self._spec.cell_timeout)
        plugins = None if loads is EVERYONE else tuple(sorted(loads))
        with suppress(WorkerDiedError):  # its answer will tell
            worker.send(MakePlan(spec=self._spec, plugins=plugins))
        return worker

    def _end(self, loads: _Loads) -> None:
        if loads in self._workers:
            self._workers.pop(loads).close()

    def _answer(self, loads: _Loads) -> Plan:
        for attempt in range(MOST_STARTS):
            if loads in self._plans:
                break
            worker = self._workers.get(loads) or self._begin(loads)
            try:
                self._plans[loads] = worker.answer(Plan, self._stop)
            except UsageError:
                self._end(loads)
                raise
            except WorkerDiedError as error:
                self._end(loads)
                if attempt == MOST_STARTS - 1 or worker.importing or worker.over:
                    raise UsageError(f"planning failed: {error}") from error
        return self._plans[loads]


def _seems_builtin(method: str) -> bool:
    """By the name of its file: to know it, torch would have to be imported."""
    folder = Path(vipbench.__file__).parent / "methods"
    return (folder / f"{method.replace('-', '_')}.py").is_file()


def _union(several: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset[str]().union(*several)


def _broken_line(plugin_set: frozenset[str], error: UsageError) -> str:
    if all(f"'{Path(s).stem}'" in str(error) or s.endswith(REMOTE) for s in plugin_set):
        return f"left out with its cells: {error}"
    names = " and ".join(f"plugin '{Path(s).stem}' ({Path(s).name})" for s in sorted(plugin_set))
    return (
        f"left out with its cells: {names}. Planning works without it and fails with it alone: "
        f"{error}. A plugin may only define and register at import, not change torch or vipbench"
    )


def _family(kind: str, source: str) -> str:
    """The registered name of a method, dataset or backbone."""
    return (labelled(source)[1] if kind == "backbone" else source).partition(":")[0]
