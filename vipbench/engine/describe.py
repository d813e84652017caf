"""What a run rests on, for others: who was drawn, which texts were used, whose code was run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vipbench.api import Split
from vipbench.engine.planning.cells import Protocol, make_rows
from vipbench.engine.planning.loading import LoadedDataset, load_dataset
from vipbench.engine.planning.protocols import arrange, draw, home
from vipbench.engine.planning.sampling import SamplingError
from vipbench.plugins.files import Plugin, local_modules
from vipbench.plugins.registry import Registry, load_registry
from vipbench.results.sharing.privacy import Pseudonyms
from vipbench.runspec.run import RunSpec


@dataclass(frozen=True)
class Description:
    """splits, prompts: by dataset, JSON values. datasets: source -> name, fingerprint, licence,
    sharing. files: name within the plugins' folder -> source file. requires: distribution ->
    version."""

    splits: dict[str, Any]
    prompts: dict[str, Any]
    datasets: dict[str, dict[str, Any]]
    files: dict[str, Path]
    requires: dict[str, str]


def describe(spec: RunSpec, names: Pseudonyms | None) -> Description:
    """Load the datasets of a run and draw its support sets. names: None leaves ids as they are.
    Raises UsageError. Plugins' code is run."""
    registry = load_registry(spec.plugins_dir)
    rows = make_rows(registry, spec.methods)
    loaded = {source: load_dataset(registry, spec, source) for source in spec.datasets}
    trained: dict[str, list[LoadedDataset]] = {}
    for scene in arrange(spec, loaded):
        trained.setdefault(home(scene.data), []).append(scene.data)
    protocols = {str(p): p for row in rows for p in [Protocol.of(spec, row.method)]}
    plugins = [row.plugin for row in rows] + [data.plugin for data in loaded.values()]
    plugins += [registry.get("backbone", b.partition(":")[0]).plugin for b in spec.backbones]
    return Description(
        {
            d.dataset.name: _splits(spec, d, trained.get(d.dataset.name, []), protocols, names)
            for d in loaded.values()
        },
        {d.dataset.name: _prompts(d) for d in loaded.values()},
        {
            source: {
                "name": d.dataset.name,
                "fingerprint": d.fingerprint,
                "licence": d.dataset.licence,
                "sharing": d.dataset.sharing,
            }
            for source, d in loaded.items()
        },
        _files(spec, plugins),
        _requires(registry, plugins),
    )


def _splits(
    spec: RunSpec,
    data: LoadedDataset,
    trained: Sequence[LoadedDataset],
    protocols: Mapping[str, Protocol],
    names: Pseudonyms | None,
) -> dict[str, Any]:
    """trained: what of `data` is trained on: nothing where it is only tested, several folds."""
    supports = [
        _support(spec, part, protocol, shots, seed)
        | ({} if part.fold is None else {"fold": part.fold.name})
        for part in trained
        for protocol in protocols.values()
        for shots in spec.shots
        for seed in spec.seeds
    ]
    splits = {name: _split(data, split, names) for name, split in data.parts().items()}
    return {"fingerprint": data.fingerprint, **splits, "supports": supports}


def _split(data: LoadedDataset, split: Split, names: Pseudonyms | None) -> dict[str, Any]:
    ids, groups = list(split.ids), None if split.groups is None else list(split.groups)
    if names is not None:
        ids = names.many("image", data.fingerprint, ids)
        groups = None if groups is None else names.many("group", data.fingerprint, groups)
    return {"ids": ids, "groups": groups, "labels": split.labels.tolist()}


def _support(
    spec: RunSpec, data: LoadedDataset, protocol: Protocol, shots: int | str, seed: int
) -> dict[str, Any]:
    """Places of the drawn images within the splits `train` and `val`, or within all folds."""
    support: dict[str, Any] = {
        "shots": shots,
        "seed": seed,
        "sampler": protocol.sampler,
        "validation": protocol.validation,
        "shots_unit": protocol.shots_unit,
    }
    try:
        count = None if shots == "full" else int(shots)
        how = (protocol.sampler, protocol.validation, protocol.shots_unit)
        drawn = draw(spec.protocol.name, data, count, seed, *how)
    except SamplingError as error:
        return support | {"impossible": str(error)}
    return support | {
        "train": drawn.train.tolist(),
        "val": None if drawn.val is None else drawn.val.tolist(),
    }


def _prompts(data: LoadedDataset) -> dict[str, Any]:
    names = data.dataset.class_names

    def bound(texts: Any) -> dict[str, list[str]] | None:
        if texts is None:
            return None
        return {name: list(of) for name, of in zip(names, texts, strict=True)}

    return {
        "class_names": list(names),
        "templates": list(data.dataset.templates),
        "symptoms": bound(data.symptoms),
        "symptoms_sha256": data.symptoms_sha256,
        "descriptions": bound(data.descriptions),
    }


def _files(spec: RunSpec, plugins: list[Plugin]) -> dict[str, Path]:
    """The used single-file plugins and what they import from beside them."""
    if spec.plugins_dir is None:
        return {}
    folder = spec.plugins_dir.resolve()
    files = {
        source
        for plugin in plugins
        if not plugin.builtin and plugin.version is None
        for source in [plugin.file.resolve(), *local_modules(plugin.file)]
    }
    return {
        file.relative_to(folder).as_posix(): file
        for file in sorted(files)
        if file.is_relative_to(folder)
    }


def _requires(registry: Registry, plugins: list[Plugin]) -> dict[str, str]:
    return {p.name: p.version for p in plugins if not p.builtin and p.version is not None}
