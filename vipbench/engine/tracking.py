"""Trackers of a run: TensorBoard and others, which receive its cells through hooks.

Built-in trackers (vipbench/trackers/) are called here, in the driver; a plugin's hooks are called
in a separate process that plans and runs no cells. If a tracker raises, a note reports it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from vipbench.engine.workers.driver import Observer, Plan, PlannedCell
from vipbench.engine.workers.messages import Track, Tracked
from vipbench.engine.workers.process import Worker, WorkerDiedError
from vipbench.errors import UsageError, unknown
from vipbench.files import make_folder, write
from vipbench.hookspecs import TrackedCell, TrackedRun
from vipbench.plugins.files import every_source
from vipbench.results.records.record import Record
from vipbench.results.store.store import FILE, Store
from vipbench.runspec.run import RunSpec
from vipbench.text import shots_text

BUILTIN = ("tensorboard", "mlflow", "wandb")
FOLDER = "tracking"
# In the folder of a cell, beside the tracker's files: which result they show.
WRITTEN = "written.json"
# The values of an epoch in a record.
CURVES = ("loss", "support_accuracy", "val_accuracy", "gradient_norm")

# Calls a hook by name with its arguments.
_Call = Callable[[str, TrackedRun, TrackedCell | None], None]


def tracked_cell(record: Record, folder: Path) -> TrackedCell:
    """The data of a record that trackers receive."""
    cell = record.cell
    settings = cell.model_dump() | record.protocol.model_dump()
    settings |= {f"hparams.{name}": value for name, value in record.hparams.items()}
    flat = {k: v if isinstance(v, _PLAIN) or v is None else str(v) for k, v in settings.items()}
    epochs = [
        (
            int(entry["epoch"]) + 1,
            {name: float(entry[name]) for name in CURVES if _has_number(entry, name)},
        )
        for entry in record.history
        if "epoch" in entry
    ]
    return TrackedCell(
        key=record.key,
        title=cell.words(),
        folder=folder,
        settings=flat,
        epochs=epochs,
        metrics=dict(_numbers(record.metrics)),
        error=None if record.error is None else f"{record.error.type}: {record.error.message}",
        created=datetime.fromisoformat(record.created).timestamp(),
        record=record.to_dict(),
    )


_PLAIN = (str, int, float, bool)


def _has_number(entry: Mapping[str, Any], name: str) -> bool:
    value = entry.get(name)
    return isinstance(value, int | float) and math.isfinite(value)


def _numbers(metrics: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, float]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and math.isfinite(value):
            yield f"{prefix}{name}", float(value)


def folder_name(cell: Any, key: str) -> str:
    """The name of a cell's folder: its description, in characters that every file system accepts,
    and the start of its key."""
    parts = [cell.method, cell.dataset, cell.backbone, shots_text(cell.shots)]
    parts += [f"seed {cell.seed}"] if cell.seed or cell.shots else []
    words = [re.sub(r"[^\w.+=-]+", "-", str(part)).strip("-.")[:48] for part in parts]
    return "_".join([*words, key[:8]])


@dataclass
class _Tracker:
    """name: as on the command line. call: runs a hook. close: ends the process that it runs in.
    failed: whether it receives no more cells of this run."""

    name: str
    folder: Path
    call: _Call
    close: Callable[[], None] = lambda: None
    failed: bool = False


class Tracking(Observer):
    """Observes a run for its trackers and for `inner`; used in a `with` block.

    Raises UsageError for an unknown tracker and for one whose package is missing.
    """

    def __init__(self, spec: RunSpec, inner: Observer) -> None:
        self._spec = spec
        self._inner = inner
        self._trackers: list[_Tracker] = []
        self._started = False
        try:
            for name in spec.track:
                self._trackers.append(_tracker(name, spec))
        except BaseException:
            self.close()
            raise

    def planned(self, plan: Plan) -> None:
        """Start the trackers, and write the cells that were already done."""
        self._inner.planned(plan)
        self.write_done(plan)

    def cell_done(self, cell: PlannedCell, record: Record) -> None:
        """Write the cell."""
        self._inner.cell_done(cell, record)
        self._write([record])

    def progress(self, cell: PlannedCell, share: float) -> None:
        """See Observer."""
        self._inner.progress(cell, share)

    def encoding(self, cell: PlannedCell, done: int, total: int) -> None:
        """See Observer."""
        self._inner.encoding(cell, done, total)

    def note(self, text: str) -> None:
        """See Observer."""
        self._inner.note(text)

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write_done(self, plan: Plan) -> None:
        """Write the cells of `plan` that have a result and are not written yet."""
        if not self._trackers:
            return
        self._start()
        missing = {
            cell.key
            for cell in plan.cells
            if any(_written(t.folder / folder_name(cell, cell.key)) != "ok" for t in self._active())
        }
        if missing and (self._spec.out / FILE).exists():
            with Store(self._spec.out, readonly=True) as store:
                found = (store.record(key) for key in missing)
                self._write([record for record in found if record is not None])

    def _active(self) -> list[_Tracker]:
        return [tracker for tracker in self._trackers if not tracker.failed]

    def _start(self) -> None:
        if not self._started:
            self._started = True
            for tracker in self._active():
                self._try(tracker, "on_run_start", None)

    def _write(self, records: Iterable[Record]) -> None:
        for record in records:
            for tracker in self._active():
                folder = tracker.folder / folder_name(record.cell, record.key)
                if _written(folder) in ("ok", record.created):
                    continue
                self._try(tracker, "on_cell_done", tracked_cell(record, folder))

    def _try(self, tracker: _Tracker, hook: str, cell: TrackedCell | None) -> None:
        what = "" if cell is None else f" for {cell.title}"
        try:
            make_folder(tracker.folder, self._spec.out.absolute())
            if cell is not None:
                if cell.folder.is_dir() and not cell.folder.is_symlink():
                    shutil.rmtree(cell.folder)  # of a failed cell, or incomplete
                cell.folder.mkdir()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # from the libraries, for their own users
                tracker.call(hook, TrackedRun(tracker.folder, self._spec.as_values()), cell)
            if cell is not None:
                result = "ok" if cell.error is None else cell.record["created"]
                write(cell.folder / WRITTEN, json.dumps({"result": result}))
        except (Exception, SystemExit) as error:
            tracker.failed = True
            kind = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
            self.note(
                f"tracker '{tracker.name}' failed in {hook}{what}: {kind}{error}; the run "
                "continues without it; run the same command again to write the missing cells"
            )

    def close(self) -> None:
        """End the run for all trackers."""
        for tracker in self._trackers:
            if self._started and not tracker.failed:
                self._try(tracker, "on_run_end", None)
            tracker.close()
        self._trackers = []


def _written(folder: Path) -> str | None:
    """The result of a cell that is written: "ok", the time of its error record, or None."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((folder / WRITTEN).read_text("utf-8"))["result"])
    return None


def check(spec: RunSpec) -> None:
    """Raises UsageError for a tracker of `spec` that is unknown or whose package is missing.
    Plugins are checked by name only."""
    for name in spec.track:
        if name in BUILTIN:
            _builtin(name)
        else:
            _source(name, spec.plugins_dir)


def _tracker(name: str, spec: RunSpec) -> _Tracker:
    folder = spec.out.absolute() / FOLDER / name
    if name not in BUILTIN:
        return _of_plugin(name, folder, spec.plugins_dir)
    module = _builtin(name)

    def call(hook: str, run: TrackedRun, cell: TrackedCell | None) -> None:
        function = getattr(module, hook, None)
        if function is not None:
            function(run) if cell is None else function(run, cell)

    return _Tracker(name, folder, call)


def _builtin(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"vipbench.trackers.{name}")
    except ImportError as error:
        raise UsageError(
            f"track: '{name}' needs a package that is not installed or fails to import ({error}): "
            f"pip install 'vipbench[{name}]'"
        ) from None


def _source(name: str, plugins_dir: Path | None) -> str:
    """The source of the plugin `name`, the name of a file in the plugins' folder without `.py`, of
    an installed distribution, or of an entry point."""
    known: dict[str, str] = {}
    for source in every_source(plugins_dir):
        owner, _, point = source.partition(":")
        for one in (point, owner, owner.removesuffix(".py")):
            known.setdefault(one, source)
    if name not in known:
        shown = [*BUILTIN, *(one for one in known if one and not one.endswith(".py"))]
        raise unknown("tracker", name, shown, "A plugin's tracker is named after its file.")
    return known[name]


def _of_plugin(name: str, folder: Path, plugins_dir: Path | None) -> _Tracker:
    source = _source(name, plugins_dir)
    worker = Worker()

    def call(hook: str, run: TrackedRun | None, cell: TrackedCell | None) -> None:
        given = {} if run is None else {"folder": str(run.folder), "settings": run.settings}
        command = Track(
            plugins_dir=None if plugins_dir is None else str(plugins_dir),
            source=source,
            hook=hook,
            run=given,
            cell=None if cell is None else vars(cell) | {"folder": str(cell.folder)},
        )
        try:
            worker.ask(command, Tracked)
        except WorkerDiedError as error:
            raise UsageError(str(error)) from None

    try:
        call("", None, None)
    except BaseException:
        worker.close()
        raise
    return _Tracker(name, folder, call, worker.close)
