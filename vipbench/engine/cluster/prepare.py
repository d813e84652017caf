"""OUT/parts, written once before anything is submitted."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vipbench import trust
from vipbench.engine.cluster.cut import (
    LEAST_SECONDS,
    MOST_PARTS,
    SECONDS,
    Piece,
    count,
    cut,
    fitting,
    pairs,
)
from vipbench.engine.cluster.folder import CHANGED, HASHES, SCHEMA, Part, Parts, encode_name
from vipbench.engine.cluster.slurm import Limits, lead
from vipbench.engine.cluster.work import code_digest, seal
from vipbench.engine.kept import CACHE_VARIABLE
from vipbench.errors import UsageError
from vipbench.files import make_folder, write
from vipbench.plugins.files import plugin_files, require_code
from vipbench.results.store.store import Store
from vipbench.runspec.executor import ExecutorSpec
from vipbench.runspec.run import PATHS_BY_DATASET, RunSpec
from vipbench.text import duration, plural

# These need no file.
BUNDLED = ("tiny-clip", "synthderm")
# Each node has its own.
LOCAL_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def prepare(
    parts: Parts,
    spec: RunSpec,
    store: Store,
    limits: Limits,
    say: Callable[[str], None],
    alive: bool,
    imported: bool = False,
) -> dict[str, Any]:
    """What run.json holds of this run: as it was cut before, with the code of now, or cut now.
    limits: what the cluster accepts. say: receives lines. alive: whether jobs of the run that was
    cut before may be alive; then nothing is changed. imported: whether results that somebody handed
    in count as done. Raises UsageError, OSError."""
    executor = spec.executor
    assert executor is not None
    whole = _absolute(spec)
    if spec.plugins_dir is not None:
        require_code(plugin_files(spec.plugins_dir), spec.plugins_dir)
    if executor.name in ("slurm", "ray"):
        _refuse_local(whole)
        _refuse_missing(whole)
    digest = hashlib.sha256(whole.model_copy(update={"executor": None}).to_yaml().encode())
    known: dict[str, Any] | None = parts.run() if parts.there else None
    if alive and known is not None:
        if known["digest"] != digest.hexdigest():
            raise UsageError(
                f"jobs of another run are active in {parts.out}; wait for them, cancel them with "
                f"`vipbench cancel {parts.out}`, or give another output folder"
            )
        if any(known.get(name) != value for name, value in _planned_with(parts, whole).items()):
            say(
                "note: vipbench, a plugin or files of this run have changed since its jobs were "
                "submitted; repeat this command when they have ended, to run the cells concerned"
            )
        return known
    if known is not None and known["digest"] == digest.hexdigest():
        run = known
        if executor.jobs not in (None, len(run["parts"])):
            say(f"note: this run already has {plural(len(run['parts']), 'part')}; jobs is ignored")
    else:
        make_folder(parts.folder)
        run = {"id": secrets.token_hex(4), "digest": digest.hexdigest()}
        first = {"next": 0, "next_encode": 0} if known is None else known
        run |= _cut(parts, whole, first["next"], store, limits, say)
        run |= _encodes(parts, whole, first["next_encode"], run["parts"])
    _show(whole, [part["cells"] for part in run["parts"]], store, say)
    cache = Path(os.environ.get(CACHE_VARIABLE) or parts.out / "cache").absolute()
    for what, path in (("results folder", parts.out), ("feature cache", cache)):
        if executor.name in ("slurm", "ray") and (inside := _local(path)) is not None:
            say(f"note: the {what} {path} is in {inside}; all nodes must share that folder")
    before = dict(run)
    differed = (parts.folder / HASHES / CHANGED).exists()
    planned_with = _planned_with(parts, whole)
    run |= {
        "schema": SCHEMA,
        "executor": {k: v for k, v in executor.model_dump(mode="json").items() if v},
        "out": str(parts.out),
        **planned_with,
        "grants": trust.grants(),
        "cwd": os.getcwd(),  # noqa: PTH109 - relative names of data and models start here
        "environment": {CACHE_VARIABLE: str(cache), "HF_HUB_OFFLINE": "1"},
        "lead": lead(executor),
        "imported": imported,
    }
    run["seal"] = seal(run)
    if differed or any(before.get(k) != v for k, v in planned_with.items()):
        _plan_again(parts, run)
    shutil.rmtree(parts.folder / HASHES, ignore_errors=True)
    write(parts.folder / "run.json", json.dumps(run, indent=1))
    return run


def _cut(
    parts: Parts,
    whole: RunSpec,
    first: int,
    store: Store,
    limits: Limits,
    say: Callable[[str], None],
) -> dict[str, Any]:
    executor = whole.executor
    assert executor is not None
    jobs = executor.jobs or fitting(whole, _measured(store)[0])
    # Each pair of backbone and dataset is a job more.
    accepted = MOST_PARTS if limits.jobs is None else max(1, limits.jobs - len(pairs(whole)))
    limit = min(MOST_PARTS, accepted, limits.numbers or MOST_PARTS)
    if jobs > limit:
        who = "vipbench makes" if limit == MOST_PARTS else "the cluster accepts"
        say(f"note: limited to {limit:,} parts: {who} no more at once")
        jobs = limit
    pieces = cut(whole, jobs)
    if limits.numbers is not None and first + len(pieces) > limits.numbers:
        raise UsageError(
            f"{parts.folder} has {first} parts from earlier runs; Slurm allows {limits.numbers} in "
            "total; give another output folder"
        )
    made: list[Part] = []
    # Those with most cells begin first; the sort keeps the order of the grid among equals.
    for order, piece in sorted(enumerate(pieces), key=lambda found: -found[1].cells):
        number = first + len(made)
        write(parts.file(number, ".yaml"), _suite(piece, executor, parts.out).to_yaml())
        made.append(Part(number, order, piece.cells, piece.without_support))
    return {"parts": [dataclasses.asdict(part) for part in made], "next": first + len(made)}


def _show(whole: RunSpec, cells: Sequence[int], store: Store, say: Callable[[str], None]) -> None:
    """What is about to be submitted. cells: of each part."""
    executor = whole.executor
    assert executor is not None
    seconds, how = _measured(store)
    longest, at_once = max(cells), min(executor.at_once or len(cells), len(cells))
    total = count(whole) * seconds / at_once
    say(
        f"split into {plural(len(cells), 'part')} of at most {plural(longest, 'cell')}; about "
        f"{duration(max(longest * seconds, total))} with {at_once} at once, at {how} per cell"
    )
    if not executor.jobs and longest * seconds < LEAST_SECONDS / 2:
        say("note: the parts are short: starting a job takes several seconds")


def _encodes(
    parts: Parts, whole: RunSpec, first: int, made: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The encode parts of a run, by the RunSpecs of its parts."""
    specs = {one["number"]: parts.spec(one["number"]) for one in made}
    found = []
    for number, pair in enumerate(pairs(whole), first):
        suite = pair.model_copy(update={"out": parts.out, "executor": None})
        write(parts.file(encode_name(number), ".yaml"), suite.to_yaml())
        needed = [
            part
            for part, spec in specs.items()
            if pair.backbones[0] in spec.backbones and pair.datasets[0] in spec.datasets
        ]
        found.append({"number": number, "parts": needed})
    return {"encodes": found, "next_encode": first + len(found)}


def _suite(piece: Piece, executor: ExecutorSpec, out: Path) -> RunSpec:
    workers = piece.spec.workers
    if executor.per_gpu:
        workers = executor.per_gpu * (executor.all_gpus or 1)
    return piece.spec.model_copy(update={"out": out, "executor": None, "workers": workers})


def _measured(store: Store) -> tuple[float, str]:
    """Seconds that a cell takes, by earlier results in the folder, and how that is known."""
    timings = [record.timing for record in store.records(history=False) if record.ok]
    taken = [sum(float(v) for v in one.values() if isinstance(v, int | float)) for one in timings]
    if not taken:
        return SECONDS, f"{SECONDS:.0f} s (assumed)"
    mean = max(sum(taken) / len(taken), 0.01)
    return mean, f"{mean:.1f} s (the mean of {plural(len(taken), 'earlier result')})"


def _absolute(spec: RunSpec) -> RunSpec:
    update: dict[str, Any] = {"out": spec.out.absolute()}
    for key in ("data_root", "plugins_dir"):
        if getattr(spec, key) is not None:
            update[key] = getattr(spec, key).absolute()
    for key in PATHS_BY_DATASET:
        update[key] = {name: file.absolute() for name, file in getattr(spec, key).items()}
    return spec.model_copy(update=update)


def _refuse_local(spec: RunSpec) -> None:
    """Raises UsageError for data of this machine alone."""
    for what, path in _paths(spec):
        if (inside := _local(path)) is not None:
            raise UsageError(
                f"{what} {path} is in {inside}, which is local to each node of a cluster; move it "
                "to a shared file system"
            )


def _local(path: Path) -> Path | None:
    """The folder of this machine alone that `path` is in, also through links and `..`."""
    local = [Path(folder) for folder in {*LOCAL_FOLDERS, tempfile.gettempdir()}]
    places = (path, path.resolve())
    return next((f for f in local if any(p.is_relative_to(f) for p in places)), None)


def _refuse_missing(spec: RunSpec) -> None:
    """Raises UsageError for weights and data that are not there: jobs download nothing. Another
    process looks, since plugins import torch."""
    sources = [name for name in (*spec.backbones, *spec.datasets) if name not in BUNDLED]
    if not sources:
        return
    flags = [("--data-root", spec.data_root), ("--plugins-dir", spec.plugins_dir)]
    options = [str(word) for flag, value in flags if value is not None for word in (flag, value)]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "vipbench", "fetch", *sources, *options, "--offline"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **({trust.VARIABLE: "1"} if trust.grants()["everything"] else {})},
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if " is there" not in line]
        raise UsageError(
            "weights or data are missing, and jobs do not download: "
            f"{'; '.join(lines) or done.stderr.strip()}. First run "
            f"`vipbench fetch {' '.join(sources)}`"
        )


def _paths(spec: RunSpec) -> Iterator[tuple[str, Path]]:
    if spec.data_root is not None:
        yield "data_root", spec.data_root
    for key in PATHS_BY_DATASET:
        for path in getattr(spec, key).values():
            yield key, path
    for what, sources in (("the dataset", spec.datasets), ("the backbone", spec.backbones)):
        for source in sources:
            for text in (source.partition(":")[2], source.partition("@")[2]):
                path = Path(text.removeprefix("local-dir:")).expanduser()
                if text and path.exists():
                    yield what, path.absolute()


def _planned_with(parts: Parts, spec: RunSpec) -> dict[str, str | None]:
    """What of run.json the keys of planned cells depend on."""
    return {
        "package": code_digest(),
        "plugins_dir": _copied(parts, spec.plugins_dir),
        "sources": _stamp(spec),
    }


def _stamp(spec: RunSpec) -> str:
    """Changes where a file that the run names does, or one in a folder that it names."""
    digest = hashlib.sha256()
    for path in sorted({path for what, path in _paths(spec) if what != "data_root"}):
        inside = (Path(at) / name for at, _, names in os.walk(path) for name in names)
        beside = path.parent.glob(f"{glob.escape(path.stem)}.*") if path.is_file() else ()
        for file in sorted([*inside, *filter(Path.is_file, beside)]):
            if file.is_relative_to(spec.out):
                continue
            with suppress(OSError):
                found = file.stat()
                digest.update(f"{file}\0{found.st_size}\0{found.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _plan_again(parts: Parts, run: Mapping[str, Any]) -> None:
    """What parts were planned to have may have other keys now: jobs plan them anew, and run what
    has no result."""
    for one in run["parts"]:
        parts.file(one["number"], ".plan").unlink(missing_ok=True)
    for one in run["encodes"]:
        parts.file(encode_name(one["number"]), ".legs").unlink(missing_ok=True)


def _copied(parts: Parts, folder: Path | None) -> str | None:
    """A copy of the plugins, so that an edit while jobs wait mixes nothing."""
    if folder is None:
        return None
    digest = hashlib.sha256()
    files = [f for f in sorted(folder.rglob("*")) if f.is_file() and "__pycache__" not in f.parts]
    for file in files:
        digest.update(f"{file.relative_to(folder)}\0{trust.sha256(file.read_bytes())}\n".encode())
    copy = parts.folder / "code" / digest.hexdigest()[:16]
    if not copy.is_dir():
        make_folder(copy.parent, parts.out)
        with tempfile.TemporaryDirectory(dir=copy.parent) as temporary:
            new = Path(temporary) / "copy"
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(folder, new, ignore=ignored)
            new.replace(copy)
    return str(copy)
