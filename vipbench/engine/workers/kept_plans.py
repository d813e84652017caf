"""Plans that later commands use again without starting a worker, while nothing that they rest on
has changed.

A plan rests on the RunSpec, the working directory, vipbench's code, the installed distributions,
variables of the environment, devices, and every file that was read to make it. A file counts as
unchanged by its name, size, inode, and the times at which its content and its entry were changed.
Plans of users' plugins and of code of model repositories are not kept: nobody knows what these
read.
"""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import vipbench
from vipbench.engine import kept
from vipbench.engine.workers.messages import Plan
from vipbench.runspec.run import RunSpec

FOLDER = "plans"
MOST_PLANS = 64
# Libraries open some files past Python (safetensors, tokenizers). So all files of a folder count
# from which one was read, unless they are too many to be a model's.
MODEL_FILES = 256
# A file that was changed so shortly before may change again within the clock's resolution.
RECENT_NS = 2 * 10**9
_VARIABLES = (
    *("VIPBENCH_", "HF_", "HUGGING", "TRANSFORMERS_", "TORCH", "PYTORCH", "CUDA", "NVIDIA", "OMP_"),
    *("MKL_", "PYTHON", "XDG_", "HOME", "LC_", "LANG"),
)


class Reads:
    """The paths that Python opens or lists in this process, while `active`."""

    def __init__(self) -> None:
        self.active = False
        self._paths: set[str] = set()
        self._hooked = False

    @contextmanager
    def watched(self) -> Iterator[set[str]]:
        """In the block, the absolute paths are collected."""
        if not self._hooked:
            sys.addaudithook(self._hook)
            self._hooked = True
        self._paths = set()
        self.active = True
        try:
            yield self._paths
        finally:
            self.active = False

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.active or event not in ("open", "os.listdir", "os.scandir"):
            return
        path = "." if args[0] is None else args[0]
        if isinstance(path, str | bytes | os.PathLike):
            self._paths.add(os.path.abspath(os.fsdecode(path)))  # noqa: PTH100 - resolves no link


def of_data(paths: Collection[str]) -> list[str]:
    """Of the paths those of users' files: not of Python, installed packages or the system."""
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    own = [sysconfig.get_path(kind) for kind in kinds]
    own += [str(Path(vipbench.__file__).parent), "/proc", "/sys", "/dev"]
    own += [os.path.abspath(kept.cache_folder() / kept.DIGESTS)]  # noqa: PTH100 - resolves no link
    # Importing lists the folders on the path, some of which are none.
    importing = {os.path.abspath(place) for place in sys.path}  # noqa: PTH100 - resolves no link
    own += [sys.pycache_prefix] if sys.pycache_prefix else []
    skipped = tuple(f"{place}{os.sep}" for place in own)
    return sorted(p for p in paths if p not in importing and not f"{p}/".startswith(skipped))


def find(spec: RunSpec) -> Plan | None:
    """The plan of `spec`, None where none was kept or something has changed since."""
    if not _may_be_kept(spec):
        return None
    found = kept.load(_name(spec), _state_of_program())
    with suppress(TypeError, KeyError, ValidationError):
        if found["files"] == _state_of_files(spec, found["reads"])[0]:
            return Plan.model_validate(found["plan"])
    return None


def keep(spec: RunSpec, plan: Plan, started: int) -> None:
    """Keep the plan that a worker began to make at `started`, by `time.time_ns`."""
    reads = plan.reads
    partial = plan.unknown or plan.lacks or plan.broken
    foreign = any(cell.plugins for cell in plan.cells)
    if reads is None or partial or foreign or not _may_be_kept(spec):
        return
    state, newest = _state_of_files(spec, reads)
    if newest > started - RECENT_NS:
        return
    answer = {"reads": reads, "files": state, "plan": plan.model_dump(mode="json")}
    kept.keep(_name(spec), _state_of_program(), answer, MOST_PLANS)


def _may_be_kept(spec: RunSpec) -> bool:
    return spec.plugins_dir is None and not any("+remote-code" in name for name in spec.backbones)


def _name(spec: RunSpec) -> str:
    plain = spec.model_copy(update={"track": ()})  # plans know nothing of trackers
    text = f"{os.getcwd()}\n{plain.to_yaml()}"  # noqa: PTH109 - the text alone
    return f"{FOLDER}/{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _state_of_program() -> str:
    """A digest of all that is no file of the user's."""
    lines = [kept.state_of_code(), *sys.path]
    lines += sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith(_VARIABLES))
    for name in ("sitecustomize", "usercustomize"):
        with suppress(OSError):
            lines += kept.states([getattr(sys.modules.get(name), "__file__", None) or ""])
    for place in sys.path:
        with suppress(OSError), os.scandir(place or ".") as entries:
            lines += sorted(
                f"{entry.path} {entry.stat().st_mtime_ns}"
                for entry in entries
                if entry.name.endswith((".dist-info", ".egg-info", ".pth"))
            )
    with suppress(OSError):
        lines += sorted(name for name in os.listdir("/dev") if name.startswith("nvidia"))  # noqa: PTH208
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _state_of_files(spec: RunSpec, reads: Collection[str]) -> tuple[str, int]:
    """A digest of the states of these paths and of those beside them, and the latest change."""
    paths = {*reads, *_named(spec)}
    folders = {path for path in paths if os.path.isdir(path)}  # noqa: PTH112 - speed
    # Beside a table may lie its card, beside a configuration the weights.
    folders |= {os.path.dirname(path) for path in reads if os.path.isfile(path)}  # noqa: PTH113, PTH120
    newest, lines = 0, []
    results = os.path.abspath(spec.out)  # noqa: PTH100 - resolves no link
    for folder in sorted(folders):
        try:
            names = sorted(os.listdir(folder))  # noqa: PTH208 - speed
        except OSError:
            continue
        inside = [os.path.join(folder, name) for name in names]  # noqa: PTH118 - speed
        lines += [path for path in inside if path != results]
        if len(names) <= MODEL_FILES:
            paths |= {path for path in inside if os.path.isfile(path)}  # noqa: PTH113 - speed
    for path in sorted(paths):
        try:
            at = os.stat(path)  # noqa: PTH116 - speed
        except OSError:
            lines.append(f"{path} missing")
            continue
        if os.path.isdir(path):  # noqa: PTH112 - speed
            continue
        newest = max(newest, at.st_mtime_ns)
        lines.append(f"{path} {at.st_size} {at.st_mtime_ns} {at.st_ctime_ns} {at.st_ino}")
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest(), newest


def _named(spec: RunSpec) -> Iterator[str]:
    """The paths that backbones and datasets may name."""
    for source in (*spec.backbones, *spec.datasets):
        pieces = [source, *source.split(":", 1)[1:], *source.split("@", 1)[1:]]
        pieces += [piece.removeprefix("local-dir:") for piece in pieces]
        for piece in pieces:
            yield os.path.abspath(os.path.expanduser(piece))  # noqa: PTH100, PTH111 - the text alone
