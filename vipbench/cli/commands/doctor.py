"""`vipbench doctor`: report what is installed and what is missing."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import vipbench
from vipbench import trust
from vipbench.cli.commands.fetch import sources_of
from vipbench.cli.exit_codes import FAILED, OK
from vipbench.engine import memory
from vipbench.engine.kept import cache_folder
from vipbench.errors import UsageError
from vipbench.fetching import offline
from vipbench.fetching.download import size
from vipbench.text import clean, columns, plural

LIBRARIES = tuple(
    (
        "torch torchvision open_clip_torch transformers timm huggingface_hub safetensors numpy "
        "scikit-learn scipy pandas pillow pydantic typer"
    ).split()
)
EXTRAS = (
    *("openai", "pyarrow", "sentencepiece", "datasets", "pydicom", "pylibjpeg"),
    *("tensorboard", "mlflow", "wandb", "ray"),
)
START = "from vipbench.engine.doctor import main; main()"


def doctor_command(what: Sequence[str], data_root: Path | None, plugins_dir: Path | None) -> int:
    """Say what there is; returns the exit status. Raises UsageError for a suite that is wrong."""
    sources, data_root, plugins_dir = sources_of(what, data_root, plugins_dir)
    broken: list[str] = []
    _versions(broken)
    state = _look(sources, data_root, plugins_dir, broken)
    if state is not None and state["unknown"]:
        raise UsageError(state["unknown"])
    if state is not None:
        _device(state)
    _caches(data_root, broken)
    missing: list[str] = []
    if state is not None:
        _plugins(state)
        for kind in ("backbones", "datasets"):
            missing += _presence(kind, state[kind], bool(sources))
        broken += state["broken"]
    print()
    for line in broken:
        print(f"broken: {clean(line, 2000)}")
    if broken:
        return FAILED
    if sources and missing:
        print(f"missing: {', '.join(missing)}")
        return FAILED
    print("The bundled demo (`vipbench run`) has everything that it needs.")
    return OK


def _versions(broken: list[str]) -> None:
    print(f"vipbench {vipbench.__version__}, Python {platform.python_version()}")
    print(f"  in        {Path(vipbench.__file__).parent}")
    print(f"  system    {platform.platform()}")
    found, lacking = [], []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            lacking.append(name)
    print(f"  libraries {', '.join(found)}")
    if lacking:
        broken.append(f"not installed: {', '.join(lacking)}; `pip install vipbench` installs them")
    extras, left_out = [], []
    for name in EXTRAS:
        try:
            extras.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            left_out.append(name)
    print(f"  extras    {', '.join(extras) or 'none'}")
    if left_out:
        print(f"            not installed: {', '.join(left_out)}")


def _look(
    sources: Sequence[str], data_root: Path | None, plugins_dir: Path | None, broken: list[str]
) -> dict[str, Any] | None:
    """What needs torch and plugins, from a process that may die of them."""
    root = str(Path(vipbench.__file__).parents[1])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    asked = {
        "sources": list(sources),
        "data_root": None if data_root is None else str(data_root),
        "plugins_dir": None if plugins_dir is None else str(plugins_dir),
        "code": trust.grants(),
    }
    done = subprocess.run(
        [sys.executable, "-P", "-c", START],
        input=json.dumps(asked),
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        state: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        lines = done.stderr.strip().splitlines() or ["it printed nothing"]
        broken.append(f"the libraries cannot be used (exit status {done.returncode}): {lines[-1]}")
        return None
    if "untrusted" in state:
        trust.require(**state["untrusted"])
        return _look(sources, data_root, plugins_dir, broken)
    return state


def _device(report: dict[str, Any]) -> None:
    devices = report["torch"]["devices"]
    for line in devices or ["none that torch can use; runs use the CPU"]:
        print(f"  GPU       {line}")

    print(
        f"  CPU       {plural(os.cpu_count() or 1, 'core')}, torch uses "
        f"{plural(report['torch']['threads'], 'thread')}, {size(memory.whole())} of memory"
    )
    state = "on where training runs on CUDA" if report["torch"]["graphs"] else "off"
    print(f"  graphs    CUDA graphs are {state} ({_set('VIPBENCH_CUDA_GRAPHS')})")
    count = report["torch"]["decoders"]
    state = f"{count} for each worker" if count else "off, threads decode"
    print(f"  decoders  decoding processes: {state} ({_set('VIPBENCH_DECODERS')})")
    variable = offline.forbidden()
    if variable is not None:
        print(f"  network   {variable} forbids connections")


def _set(variable: str) -> str:
    value = os.environ.get(variable)
    return f"{variable} is not set" if value is None else f"{variable}={value}"


def _caches(data_root: Path | None, broken: list[str]) -> None:
    hub = Path(
        os.environ.get("HF_HUB_CACHE")
        or Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface") / "hub"
    )
    features = cache_folder()
    data = Path("data") if data_root is None else data_root
    rows = [("", "folder", "holds", "free")]
    for name, folder in (("features", features), ("Hub", hub), ("data", data)):
        holds = size(_bytes(folder)) if folder.is_dir() else "does not exist yet"
        rows.append((name, str(folder.absolute()), holds, _free(folder)))
    rows.append(("results", str(Path.cwd()), "", _free(Path.cwd())))
    print("\ncaches and folders")
    for line in columns(rows):
        print(f"  {line}")
    if not os.access(Path.cwd(), os.W_OK):
        broken.append(
            f"{Path.cwd()} cannot be written: `vipbench run` puts its results there; give --out"
        )


def _bytes(folder: Path) -> int:
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            file = Path(place, name)
            if not file.is_symlink():
                total += file.stat().st_size if file.exists() else 0
    return total


def _free(folder: Path) -> str:
    while not folder.exists() and folder != folder.parent:
        folder = folder.absolute().parent
    try:
        return size(shutil.disk_usage(folder).free)
    except OSError:
        return "?"


def _plugins(state: dict[str, Any]) -> None:
    counts = ", ".join(plural(n, kind) for kind, n in state["counts"].items())
    print(f"\nregistered: {counts}")
    for name, plugin in state["plugins"].items():
        print(f"  plugin '{name}' {plugin['version'] or ''} ({plugin['file']})")
    for error in state["failed"]:
        print(f"  fails to load: {clean(error, 2000)}")


def _presence(kind: str, states: list[dict[str, Any]], named: bool) -> list[str]:
    """Print what is there and what is not; returns the sources that are not. Sets that are missing
    for one and the same reason, whatever their name, share a line unless they were asked for."""
    print(f"\n{kind}")
    for state in states:
        if state["present"]:
            print(f"  there    {state['source']}  {state['place']}")
    missing = [state for state in states if not state["present"]]
    place = ""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for state in missing:
        key = state["source"] if named else state["source"].partition(":")[0]
        by_name.setdefault(key, []).append(state)
    for group in by_name.values():
        first, more = group[0], [state["source"] for state in group[1:]]
        print(f"  missing  {first['source']}  {clean(first['todo'], 2000)}")
        if first["place"] and first["place"] != place:
            place = first["place"]
            print(f"             looked for in {place}")
        if more:
            print(f"           likewise {', '.join(more)}")
    return [state["source"] for state in missing]
