"""The process that imports torch and runs plugins; it begins in `main`.

It reads one JSON command a line on standard input and writes one JSON event a line on the
descriptor that standard output was; whatever a plugin prints goes to standard error. It ends
when its input does, so that it never outlives its driver.
"""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from vipbench import alive
from vipbench.api import Dataset, TextError, UnsupportedError, Views
from vipbench.engine.evaluation.count_parameters import trainable_counts
from vipbench.engine.evaluation.estimate import Estimator
from vipbench.engine.evaluation.records import base_record
from vipbench.engine.evaluation.runner import GroupRunner
from vipbench.engine.evaluation.scoring import Finished
from vipbench.engine.evaluation.support import reads
from vipbench.engine.features.cache import Item, evict
from vipbench.engine.features.features import Encoding as Encoded
from vipbench.engine.features.features import Features
from vipbench.engine.features.images import Drawn
from vipbench.engine.machine import Share, share
from vipbench.engine.planning.cells import (
    LoadedCell,
    Row,
    make_rows,
    plan_cells,
    profile_note,
    unread,
)
from vipbench.engine.planning.hparams import hparam_types, search_space
from vipbench.engine.planning.loading import (
    TEXTS,
    Beside,
    LoadedBackbone,
    LoadedDataset,
    load_backbone,
    load_dataset,
    runs_own_code,
    users,
)
from vipbench.engine.planning.protocols import arrange
from vipbench.engine.precision import require
from vipbench.engine.training.cuda_graphs import Replays, replays
from vipbench.engine.workers.kept_plans import Reads, of_data
from vipbench.engine.workers.messages import (
    Begun,
    Catalogue,
    CatalogueEntry,
    Command,
    Done,
    Encode,
    EncodeCells,
    Encoding,
    Estimate,
    Estimated,
    Event,
    FindWants,
    GroupDone,
    Importing,
    Lack,
    ListPlugins,
    MakeEstimate,
    MakePlan,
    Note,
    Plan,
    Refused,
    RunCells,
    TextsSeen,
    Tick,
    Track,
    Tracked,
    Want,
    Wants,
)
from vipbench.errors import UsageError
from vipbench.hookspecs import TRACKER_HOOKS, TrackedCell, TrackedRun
from vipbench.plugins.closure import closure
from vipbench.plugins.files import Plugin, loaded_plugins
from vipbench.plugins.registry import KINDS, Kind, Registry, load_registry, provenance
from vipbench.results.records.plan import PlannedCell
from vipbench.runspec.run import RunSpec
from vipbench.runspec.values import labelled
from vipbench.trust import UntrustedCodeError

Send = Callable[[Event], None]

Runners = dict[tuple[str, str], GroupRunner]


class Session:
    """What the worker holds between commands; what `replays` refused stays so in later plans."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.spec: RunSpec | None = None
        self.cells: dict[str, LoadedCell] = {}
        self.runners: Runners = {}
        self.estimator = Estimator()
        self.device: torch.device | None = None
        self.replays: Replays | None = None
        self.reads = Reads()
        self.encoding = Encoded()
        self.tracker: dict[str, Any] | None = None  # its hooks

    def handle(self, command: Command) -> None:
        """One command; a UsageError becomes an event."""
        try:
            match command:
                case ListPlugins():
                    self.list_plugins(command)
                case MakePlan():
                    self.plan(command.spec, command.number, command.plugins)
                case RunCells():
                    self.run(command.keys, command.ahead)
                case FindWants():
                    self.find_wants(command.keys)
                case Encode():
                    self.encode(command.encodings)
                case EncodeCells():
                    self.encode_cells(command)
                case MakeEstimate():
                    self.estimate(command.keys, command.seconds)
                case Track():
                    self.track(command)
        except UsageError as error:
            self.send(Refused(message=str(error)))

    def list_plugins(self, asked: ListPlugins) -> None:
        """What is registered."""
        folder = None if asked.plugins_dir is None else Path(asked.plugins_dir)
        only = set(asked.closures.values()) or None
        registry = load_registry(folder, only=only, importing=self._importing)
        entries = [*_describe_methods(registry)]
        for entry in entries:
            if entry.name in asked.closures:
                entry.detail["closure"] = closure(registry.methods[entry.name].target)
        if asked.count:
            numbers = trainable_counts(registry)
            for entry in entries:
                entry.detail["trainable"] = numbers[entry.name]
        for kind, table in (("backbone", registry.backbones), ("dataset", registry.datasets)):
            for found in table.values():
                detail = dict(provenance(found.plugin))
                entries.append(CatalogueEntry(kind, found.name, found.help, detail))
        self.send(Catalogue(entries=tuple(entries)))

    def plan(self, run: RunSpec, number: int = 0, plugins: Sequence[str] | None = None) -> None:
        """Expand a RunSpec into cells, loading every dataset and backbone of it; see `MakePlan`."""
        ticker = _Ticker(self.send)
        with self.reads.watched() as paths, alive.reported(lambda: ticker(0.0)):
            plan = self._plan(run, number, plugins)
        if not loaded_plugins():
            plan = plan.model_copy(update={"reads": of_data(paths)})
        self.send(plan)

    def _plan(self, run: RunSpec, number: int, plugins: Sequence[str] | None) -> Plan:
        plugin_set = None if plugins is None else frozenset(plugins)
        self.spec = run
        machine = share(run)
        device = machine.device(number)
        require(run.feature_precision, device)
        registry = load_registry(run.plugins_dir, only=plugins, importing=self._importing)
        unknown: list[str] = []
        if plugin_set is not None:
            run, unknown = some_of(run, registry, plugin_set)
        rows = make_rows(registry, run.methods)
        # Names first: a misspelled backbone must not wait for the hashing of a dataset.
        for source in run.datasets:
            registry.get("dataset", source.partition(":")[0])
        for source in run.backbones:
            registry.get("backbone", labelled(source)[1].partition(":")[0])
        backbones = [load_backbone(registry, source) for source in run.backbones]
        loaded = {source: load_dataset(registry, run, source) for source in run.datasets}
        datasets = [*loaded.values()]
        _check_names({source: d.dataset.name for source, d in loaded.items()}, "datasets")
        named = zip(run.backbones, backbones, strict=True)
        _check_names({source: b.name for source, b in named}, "backbones")
        _check_weights(backbones)
        scenes = arrange(self.spec, loaded)
        beside = Beside(registry, backbones, device, plugin_set)
        if device != self.device:
            self.device, self.replays = device, replays(device, self.note)
        self.cells, cells, lacks, seen = {}, [], set(), list[TextsSeen]()
        partial: list[str] = []
        for backbone in backbones:
            backbone.backbone.to(device)
            for data in datasets:
                self.runners[backbone.source, data.dataset.name] = self._runner(
                    machine, backbone, data
                )
            for scene in scenes:
                for row in rows:
                    planned = _planned_cells(run, row, scene, backbone, beside)
                    if plugin_set is not None:
                        lacking = {
                            c.key: _missing_backbones(registry, c, plugin_set) for c in planned
                        }
                        lacks |= {
                            (_sources(c.plugins), lacking[c.key]) for c in planned if lacking[c.key]
                        }
                        planned = [
                            cell
                            for cell in planned
                            if _sources(cell.plugins) == plugin_set and not lacking[cell.key]
                        ]
                    # Each kind of knowledge and set of texts has a label.
                    for label, own_cells in groupby(planned, lambda cell: cell.row.label):
                        alike = [*own_cells]
                        reasons, texts = _cannot_build(self.runners, alike)
                        seen += [
                            TextsSeen(
                                method=label,
                                dataset=data.dataset.name,
                                of=data.dataset.class_names[0],
                                texts=own,
                            )
                            for data, own in texts.values()
                        ]
                        partial += [
                            f"{data.dataset.name}: {label} takes the first of "
                            f"{len(data.dataset.templates)} templates"
                            for data, own in texts.values()
                            if "templates" in data.from_files and _first_alone(data.dataset, own)
                        ]
                        for cell in alike:
                            if cell.tested.dataset.name in texts:
                                own = texts[cell.tested.dataset.name][1]
                                cell = dataclasses.replace(cell, class_texts=own)
                            self.cells[cell.key] = cell
                            reason = cell.impossible or reasons.get(cell.tested.dataset.name)
                            cells.append(_planned(cell, reason, profile_note(run, cell)))
        notices = [notice for data in datasets for notice in data.notices]
        notices += dict.fromkeys(partial)
        for dataset in [d.dataset for d in datasets if d.dataset.caption]:
            prefixed = dataset.caption.startswith(f"{dataset.name} ")
            notices.append(dataset.caption if prefixed else f"{dataset.name}: {dataset.caption}")
        if any("text" in row.method.needs for row in rows):
            notices += [
                f"{d.dataset.name}: {numbered}; `class_names` in the card of the data names them"
                for d in datasets
                if (numbered := d.numbered())
            ]
        notices += [
            f"{b.name}: licence of the weights: {b.backbone.licence}"
            for b in (*backbones, *beside.further.values())
        ]
        notices += [f"{b.name}: {note}" for b in backbones for note in b.backbone.notes]
        if any(row.method.needs & TEXTS for row in rows):
            notices += [note for b in backbones for d in datasets for note in unread(b.backbone, d)]
        workers = str(machine.workers)
        info = {"device": machine.description, "workers": workers, "torch": torch.__version__}
        return Plan(
            cells=cells,
            notices=notices,
            texts=seen,
            info=info,
            unknown=tuple(unknown),
            lacks=tuple(Lack(plugins=tuple(sorted(own)), backbones=b) for own, b in lacks),
            loaded=tuple(sorted(_sources(loaded_plugins()))),
            registered=tuple(
                f"{kind} '{name}'"
                for kind in KINDS
                for name, one in registry.of(kind).items()
                if not one.plugin.builtin
            ),
        )

    def run(self, keys: Sequence[str], ahead: Sequence[str] = ()) -> None:
        """Run one group: cells of the same row, dataset and backbone. ahead: see `RunCells`."""
        cells = [self.cells[key] for key in keys]
        runner = self.runners[cells[0].place]
        self.send(Begun(records=tuple(base_record(cell) for cell in cells)))
        for stack in runner.run(cells, [self.cells[key] for key in ahead]):
            for left, finished in zip(reversed(range(len(stack))), stack, strict=True):
                done = Done(
                    record=finished.record,
                    predictions=finished.predictions,
                    parameters=finished.parameters,
                    left=left,
                )
                self.send(done)
        evict()
        texts = runner.shelf.encoded_texts if runner.shelf else 0
        self.send(
            GroupDone(
                encoded_images=runner.encoded_images, encoded_texts=texts, spoilt=runner.spoilt
            )
        )

    def find_wants(self, keys: Sequence[str]) -> None:
        """Tell what images one group reads that are not encoded yet and that workers with fewer
        plugins than its own should encode, so that they serve others too: for each plugin set of
        such workers what to give to `encode`."""
        cells = [self.cells[key] for key in keys]
        own = cells[0].plugins
        found: dict[tuple[Any, ...], dict[Item, None]] = {}
        with suppress(Exception):  # of a plugin's recipe; the run of the cells will tell
            for cell in cells:
                for dataset, split, items, views in reads(cell):
                    features = self.runners[cell.backbone.source, dataset].features
                    if features.plugins != own:
                        at = (features.plugins, cell.backbone.source, dataset, split, views)
                        unshared = features.unshared(split, items, views)
                        found.setdefault(at, {}).update(dict.fromkeys(unshared))
        wants: dict[frozenset[Plugin], list[Encoding]] = {}
        for (plugins, backbone, dataset, split, views), missing in found.items():
            if missing:
                encoding = Encoding(
                    backbone=backbone,
                    dataset=dataset,
                    split=split,
                    items=tuple(missing),
                    views=None if views is None else (dataclasses.asdict(views[0]), views[1]),
                )
                wants.setdefault(plugins, []).append(encoding)
        self.send(
            Wants(
                wants=tuple(
                    Want(plugins=tuple(sorted(_sources(of))), encodings=tuple(encodings))
                    for of, encodings in wants.items()
                )
            )
        )

    def encode(self, encodings: Sequence[Encoding]) -> None:
        """Encode images for cells that other processes run; see `find_wants`."""
        wanted: dict[tuple[str, str], dict[tuple[str, Drawn], dict[Item, None]]] = {}
        for one in encodings:
            views = (
                None
                if one.views is None
                else (Views(**_lists_as_tuples(one.views[0])), one.views[1])
            )
            kinds = wanted.setdefault((one.backbone, one.dataset), {})
            kinds.setdefault((one.split, views), {}).update(dict.fromkeys(one.items))
        for place, kinds in wanted.items():
            # What fails here fails again, and is reported, where the cells are run.
            with suppress(Exception):
                self.runners[place].features.fetch(kinds)
        evict()

    def encode_cells(self, asked: EncodeCells) -> None:
        """See `EncodeCells`."""
        self.encode(asked.encodings)
        places: dict[tuple[str, str], list[LoadedCell]] = {}
        for key in asked.keys:
            places.setdefault(self.cells[key].place, []).append(self.cells[key])
        for place, cells in places.items():
            self.runners[place].encode(cells)
        evict()
        encoded = sum(self.runners[place].encoded_images for place in places)
        self.send(GroupDone(encoded_images=encoded, encoded_texts=0, spoilt=False))

    def estimate(self, keys: Sequence[str], seconds: float = 3600.0) -> None:
        """What one group will take."""
        cells = [self.cells[key] for key in keys]
        runner = self.runners[cells[0].place]
        found = self.estimator.group(runner, cells, seconds)
        self.send(Estimated(estimate=Estimate(group=cells[0].row.label, **found)))

    def track(self, command: Track) -> None:
        """Call the hook of a plugin's tracker."""
        if self.tracker is None:
            folder = None if command.plugins_dir is None else Path(command.plugins_dir)
            registry = load_registry(folder, only=[command.source], importing=self._importing)
            if registry.tracker is None:
                hooks = ", ".join(TRACKER_HOOKS)
                raise UsageError(
                    f"track: the plugin '{command.source}' is not a tracker; expected one of the "
                    f"hooks {hooks}"
                )
            self.tracker = registry.tracker
        function = self.tracker.get(command.hook)
        if function is not None:
            run = TrackedRun(Path(command.run["folder"]), command.run["settings"])
            given: tuple[Any, ...] = (run,)
            if (cell := command.cell) is not None:
                epochs = [(epoch, values) for epoch, values in cell["epochs"]]
                fields = {**cell, "folder": Path(cell["folder"]), "epochs": epochs}
                given = (run, TrackedCell(**fields))
            try:
                function(*given)
            except (Exception, SystemExit) as error:
                raise UsageError(f"{type(error).__name__}: {error}") from error
        self.send(Tracked())

    def run_alone(self, key: str) -> Finished:
        """One planned cell by itself; whatever it raises comes through."""
        cell = self.cells[key]
        return self.runners[cell.place].run_alone(cell)

    def note(self, text: str) -> None:
        """Tell the user."""
        self.send(Note(text=text))

    def _importing(self, plugin: str) -> None:
        # Should its import end this process, the driver can name it.
        self.send(Importing(plugin=plugin))

    def _runner(self, machine: Share, backbone: LoadedBackbone, data: LoadedDataset) -> GroupRunner:
        assert self.spec is not None
        precision = self.spec.feature_precision
        ticker = _Ticker(self.send)
        self.encoding.show = ticker.encoding
        features = Features(
            backbone.backbone,
            data.splits,
            data.fingerprint,
            ticker,
            self.note,
            encoding=self.encoding,
            plugins=users(backbone, data),
            precision=precision,
        )
        runner = GroupRunner(features, self.note, machine, self.replays)
        for other in self.runners.values():
            if other.features.backbone is backbone.backbone:
                runner.guard.weights = other.guard.weights  # hashed once
        runner.features_of = lambda name: self.runners[backbone.source, name].features
        return runner


class _Ticker:
    """Signs of life, at most two a second."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._last = 0.0

    def __call__(self, share: float) -> None:
        """Report that `share` in [0,1] of the work at hand is done."""
        now = time.monotonic()
        if now - self._last > 0.5:
            self._last = now
            self._send(Tick(share=share))

    def encoding(self, done: int, total: int) -> None:
        """Report that `done` of `total` images and views are encoded."""
        now = time.monotonic()
        if now - self._last > 0.5 or done == total:
            self._last = now
            self._send(Tick(encoded=(done, total)))


def _planned_cells(run: RunSpec, row: Row, *given: Any) -> list[LoadedCell]:
    """See plan_cells. Raises UsageError for whatever a method's hooks raise."""
    try:
        return plan_cells(run, row, *given)
    except (UsageError, UntrustedCodeError):
        raise
    except BaseException as error:
        what = f"{type(error).__name__}: {error}"
        frames = traceback.extract_tb(error.__traceback__)
        at = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}"
        raise UsageError(
            f"{row.plugin}: method '{row.method.name}' cannot be planned: {what} ({at})"
        ) from error


def _cannot_build(
    runners: Runners, cells: list[LoadedCell]
) -> tuple[dict[str, str], dict[str, tuple[LoadedDataset, tuple[str, ...]]]]:
    """What is tested -> why it cannot be: the method cannot be built on this backbone, where it
    says so itself, or serves no other classes than those that it is trained on. Tried once for each
    of what is tested; cells are of one row. Also the texts of the first class of those that can be
    built."""
    firsts: dict[str, LoadedCell] = {}
    for cell in cells:
        if cell.impossible is None:
            firsts.setdefault(cell.tested.dataset.name, cell)
    found: dict[str, str] = {}
    rebound = next((c for c in firsts.values() if c.rebound), None)
    if rebound is not None and (
        reason := _refusal_of(runners[rebound.place].try_transfer, rebound)
    ):
        return dict.fromkeys(firsts, reason), {}
    texts = {}
    for name, cell in firsts.items():
        runner = runners[cell.place]
        if reason := _refusal_of(runner.try_build, cell):
            found[name] = reason
        elif shown := runner.class_texts.shown():
            texts[name] = cell.tested, shown
    return found, texts


def _first_alone(dataset: Dataset, texts: Sequence[str]) -> bool:
    """Whether a method's texts of the first class are the first of several templates."""
    first, *others = dataset.templates
    return bool(others) and [*texts] == [first.replace("{}", dataset.class_names[0])]


def _refusal_of(attempt: Callable[[LoadedCell], Any], cell: LoadedCell) -> str | None:
    try:
        answer = attempt(cell)
    except (UnsupportedError, TextError) as error:
        return str(error)
    except Exception:
        # Any other failure is the cell's own, and becomes its record.
        return None
    return answer if isinstance(answer, str) else None


def _planned(cell: LoadedCell, reason: str | None, note: str) -> PlannedCell:
    return PlannedCell(
        key=cell.key,
        **cell.id.model_dump(),
        group="\x1f".join(cell.group),
        status="todo" if reason is None else "impossible",
        reason=reason,
        note=note,
        plugin=cell.owner.name,
        file=cell.owner.file.name,
        parts=dict(cell.parts),
        plugins=tuple(sorted(_sources(cell.plugins))),
    )


def _sources(plugins: Iterable[Plugin]) -> frozenset[str]:
    return frozenset(plugin.source for plugin in plugins)


def _lists_as_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no tuples."""
    return {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}


def _missing_backbones(
    registry: Registry, cell: LoadedCell, plugin_set: frozenset[str]
) -> tuple[str, ...]:
    """The further backbones that the cell reads and nobody registers, as `unknown` has them, and
    the sources of those whose code is not to be run here."""
    names = cell.hparams.backbones()
    found = []
    for name in map(str, names if isinstance(names, tuple) else ()):
        if (base := name.partition(":")[0]) not in registry.backbones:
            found.append(f"backbone '{base}'")
        elif runs_own_code(registry, name) and name not in plugin_set:
            found.append(name)
    return tuple(found)


def some_of(
    run: RunSpec, registry: Registry, plugin_set: frozenset[str]
) -> tuple[RunSpec, list[str]]:
    """What of a run those need who have loaded the plugins of `plugin_set` alone: methods, datasets
    and backbones that cells of theirs are made of, or whose images they encode for others; and
    what the run names that they do not know."""
    unknown: list[str] = []

    def known(kind: Kind, names: Iterable[str]) -> dict[str, frozenset[str]]:
        table, found = registry.of(kind), {}
        for name in names:
            given = labelled(name)[1] if kind == "backbone" else name
            if (base := given.partition(":")[0]) in table:
                own = _sources(users(table[base]))
                if kind == "backbone" and runs_own_code(registry, name):
                    own = frozenset({name})
                if own <= plugin_set:
                    found[name] = own
            else:
                unknown.append(f"{kind} '{base}'")
        return found

    methods = known("method", (method.name for method in run.methods))
    datasets, backbones = known("dataset", run.datasets), known("backbone", run.backbones)
    if not run.protocol.transfers:  # else a cell reads several datasets
        pairs = [
            (dataset, backbone)
            for dataset, own in datasets.items()
            for backbone, towers in backbones.items()
            # A user's method may read further backbones, of users too.
            if own | towers == plugin_set
            or any(more and own | towers | more <= plugin_set for more in methods.values())
        ]
        datasets = {name: own for name, own in datasets.items() if name in dict(pairs)}
        backbones = {b: own for b, own in backbones.items() if any(b == two for _, two in pairs)}
    own = {
        "methods": tuple(method for method in run.methods if method.name in methods),
        "datasets": tuple(datasets),
        "backbones": tuple(backbones),
    }
    return run.model_copy(update=own), unknown


def _describe_methods(registry: Registry) -> Iterable[CatalogueEntry]:
    for found in registry.methods.values():
        method = found.target
        types = {k: getattr(t, "__name__", str(t)) for k, t in hparam_types(method).items()}
        default = method.HParams()
        detail = {
            "kind": method.kind,
            "paper": method.paper,
            "year": method.year,
            "bibtex": method.bibtex,
            "cost": method.cost,
            "needs": sorted(method.needs),
            "inputs": method.inputs,
            "published_validation": method.published.validation,
            "uses_support": method.uses_support,
            "hparams": {k: {"type": t, "default": getattr(default, k)} for k, t in types.items()},
            "tunes": search_space(method),
            **provenance(found.plugin),
        }
        yield CatalogueEntry("method", found.name, found.help, detail)


def _check_weights(backbones: Sequence[LoadedBackbone]) -> None:
    """Refuse one model under two labels: its cells would have the same keys."""
    seen: dict[str, str] = {}
    for one in backbones:
        other = seen.setdefault(one.backbone.fingerprint, one.source)
        if other != one.source:
            raise UsageError(f"the backbones '{other}' and '{one.source}' are the same; give one")


def _check_names(names: Mapping[str, str], what: str) -> None:
    """names: source, as the user gave it -> its name in tables."""
    for source, name in names.items():
        same = [other for other in names if names[other] == name]
        if len(same) > 1:
            raise UsageError(
                f"the {what} '{source}' and '{same[1]}' would both be named '{name}' in tables; "
                f"remove one of them, or rename its file or folder"
            )
