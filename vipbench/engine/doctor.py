"""What this machine has of what runs need: for `vipbench doctor`, in a process of its own, since a
library may end it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vipbench import trust
from vipbench.api import DataError
from vipbench.engine.features import decode_pool
from vipbench.engine.machine import kind_name, threads, untested
from vipbench.engine.training import cuda_graphs
from vipbench.errors import UsageError
from vipbench.fetching import offline
from vipbench.plugins.registry import Registry, load_registry

# What `vipbench run` alone takes.
DEFAULTS = {"backbone": "tiny-clip", "dataset": "synthderm"}
State = dict[str, Any]


def report(plugins_dir: Path | None, data_root: Path | None, sources: Sequence[str]) -> State:
    """Everything that needs the libraries and plugins, as JSON values.

    sources: backbones and datasets to look for beside those that are known. `broken` lists what
    keeps `vipbench run` alone from its table.
    """
    import torch

    failed: list[UsageError] = []
    try:
        registry = load_registry(plugins_dir, failed)
    except UsageError as error:  # no such folder
        failed.append(error)
        registry = load_registry()
    strange = ""
    try:
        for source in sources:
            registry.check_source(source)
    except UsageError as error:
        strange = str(error)
    broken = [str(error) for error in failed]
    for kind, source in DEFAULTS.items():
        try:
            if kind == "backbone":
                threads(registry.backbone(source)[0])
            else:
                registry.dataset(source)[0].load(data_root)
        except Exception as error:
            broken.append(f"{kind} {source}: {type(error).__name__}: {error}")
    plugins = {
        found.plugin.name: {"version": found.plugin.version, "file": str(found.plugin.file)}
        for table in (registry.methods, registry.backbones, registry.datasets)
        for found in table.values()
        if not found.plugin.builtin
    }
    return {
        "torch": {
            "threads": torch.get_num_threads(),
            "devices": _devices(),
            "graphs": cuda_graphs.asked(),
            "decoders": decode_pool.asked(),
        },
        "plugins": plugins,
        "failed": [str(error) for error in failed],
        "counts": {kind: len(registry.of(kind)) for kind in ("method", "backbone", "dataset")},
        "backbones": [backbone_state(registry, s) for s in _known(registry, "backbone", sources)],
        "datasets": [
            dataset_state(registry, s, data_root) for s in _known(registry, "dataset", sources)
        ],
        "broken": broken,
        "unknown": strange,
    }


def _devices() -> list[str]:
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    others = [f"{kind_name(name)}, used by --device {name} alone" for name in untested()]
    return [*(_device(i) for i in range(there)), *others]


def _device(index: int) -> str:
    import torch

    facts = torch.cuda.get_device_properties(index)
    bf16 = ", bf16" if torch.cuda.is_bf16_supported() else ""
    return f"cuda:{index} {facts.name}, {facts.total_memory / 1e9:.0f} GB{bf16}"


def _known(registry: Registry, kind: Any, sources: Sequence[str]) -> list[str]:
    table = registry.of(kind)
    asked = [source for source in sources if source.partition(":")[0] in table]
    if sources:
        return list(dict.fromkeys(asked))
    return [DEFAULTS[kind], *(source for found in table.values() for source in found.known)]


def backbone_state(registry: Registry, source: str) -> State:
    """Whether all files of a backbone are there. present: None where it does not tell."""
    found: State = {"source": source, "present": True, "place": "comes with its plugin", "todo": ""}
    try:
        if source == DEFAULTS["backbone"]:
            return {**found, "place": "comes with vipbench"}
        paths = []
        for needed in registry.files(source):
            path = needed.find()
            if path is None:
                todo = f"lacks {needed.what}; vipbench fetch {source}"
                place = ", ".join(needed.places())
                return {**found, "present": False, "place": place, "todo": todo}
            paths.append(path)
        return {**found, "place": str(paths[0].parent)} if paths else found
    except Exception as error:  # whatever a plugin raises
        return {**found, "present": False, "place": "", "todo": _line(error)}


def dataset_state(registry: Registry, source: str, root: Path | None) -> State:
    """Whether a dataset's files are there; todo: what was looked for, where, and how to get it."""
    found: State = {"source": source, "present": True, "place": "", "todo": ""}
    try:
        place = registry.dataset(source)[0].locate(root)
        return {**found, "place": "needs no file" if place is None else str(place.absolute())}
    except (DataError, UsageError) as error:
        return {**found, "present": False, "todo": _line(error)}
    except Exception as error:  # whatever a plugin raises
        return {**found, "present": False, "todo": f"{type(error).__name__}: {_line(error)}"}


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def main() -> None:
    """Report on what the JSON of standard input asks for, as JSON on standard output."""
    offline.obey()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a plugin prints
    asked = json.load(sys.stdin)
    plugins_dir, data_root = (
        None if asked[key] is None else Path(asked[key]) for key in ("plugins_dir", "data_root")
    )
    trust.obey(asked["code"])
    try:
        state = report(plugins_dir, data_root, asked["sources"])
    except trust.UntrustedCodeError as error:
        state = {"untrusted": error.as_json()}
    json.dump(state, out)
    out.flush()
