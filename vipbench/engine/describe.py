"""What a run rests on, for others: who was drawn, which texts were used, whose code was run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vipbench.api import Split
from vipbench.engine.planning.cells import Protocol, make_rows
from vipbench.engine.planning.loading import LoadedDataset, Texts, load_dataset, own_texts
from vipbench.engine.planning.protocols import arrange, draw, home
from vipbench.engine.planning.sampling import SamplingError
from vipbench.errors import UsageError
from vipbench.plugins.files import Plugin, local_modules
from vipbench.plugins.registry import Registry, load_registry
from vipbench.results.records.protocol_names import ARROW, split_fold, split_part
from vipbench.results.records.record import Record
from vipbench.results.sharing.privacy import Pseudonyms, public_source
from vipbench.results.store.store import Store
from vipbench.runspec.run import RunSpec
from vipbench.runspec.values import dataset_keys, labelled


@dataclass(frozen=True)
class Description:
    """splits, prompts: by dataset, JSON values. datasets: source -> name, fingerprint, licence,
    sharing. files: name within the plugins' folder -> source file. requires: distribution ->
    version. absent: name -> why the dataset could not be read; its records describe it."""

    splits: dict[str, Any]
    prompts: dict[str, Any]
    datasets: dict[str, dict[str, Any]]
    files: dict[str, Path]
    requires: dict[str, str]
    absent: dict[str, str]


def describe(spec: RunSpec, names: Pseudonyms | None, store: Store) -> Description:
    """Load the datasets of a run and draw its support sets. Of data that cannot be read the records
    in `store` tell the test images and texts. names: None leaves ids as they are. Raises
    UsageError. Plugins' code is run."""
    registry = load_registry(spec.plugins_dir)
    rows = make_rows(registry, spec.methods)
    loaded: dict[str, LoadedDataset] = {}
    absent: dict[str, tuple[Record, str]] = {}
    for source in spec.datasets:
        try:
            loaded[source] = load_dataset(registry, spec, source)
        except UsageError as error:
            record = _record_of(source, spec, store)
            if record is None:
                raise
            absent[source] = record, str(error)
    # A protocol over several datasets draws from all of them.
    whole = not absent or not spec.protocol.transfers
    scenes = arrange(spec, loaded) if whole and loaded else []
    trained: dict[str, list[LoadedDataset]] = {}
    for scene in scenes:
        trained.setdefault(home(scene.data), []).append(scene.data)
    protocols = {str(p): p for row in rows for p in [Protocol.of(spec, row.method)]}
    plugins = [row.plugin for row in rows] + [data.plugin for data in loaded.values()]
    plugins += [registry.get("dataset", s.partition(":")[0]).plugin for s in absent]
    plugins += [
        registry.get("backbone", labelled(b)[1].partition(":")[0]).plugin for b in spec.backbones
    ]
    found = Description({}, {}, {}, _files(spec, plugins), _requires(registry, plugins), {})
    for source in spec.datasets:
        if source in absent:
            record, why = absent[source]
            _from_record(found, spec, source, record, store, names)
            found.absent[record.cell.dataset] = why
            continue
        data = loaded[source]
        name = data.dataset.name
        found.splits[name] = _splits(spec, data, trained.get(name, []), protocols, names)
        found.prompts[name] = _prompts(data)
        found.datasets[source] = {
            "name": name,
            "fingerprint": data.fingerprint,
            "licence": data.dataset.licence,
            "sharing": data.dataset.sharing,
        }
    return found


def _record_of(source: str, spec: RunSpec, store: Store) -> Record | None:
    """A finished record of the dataset, tested on all of its classes; None where there is none."""
    public = public_source(source, spec.data_root)
    alone = [public_source(other, spec.data_root) for other in spec.datasets].count(public) == 1
    latest = {cell.key for cell in store.plan(latest=True)}
    for record in store.records(history=False):
        made = record.provenance.get("dataset")
        same = isinstance(made, dict) and made.get("source") == public
        # Of several tables each is `csv:PATH`: their names tell them apart.
        name = record.cell.dataset
        whole = split_part(name)[0] == name and ARROW not in name
        # One fold does not describe the others.
        whole &= split_fold(name)[1] is None or source.endswith(f"@fold-{split_fold(name)[1]}")
        own = record.ok and record.key in latest and same and whole
        if own and (alone or name in dataset_keys([source])):
            return record
    return None


def _from_record(
    found: Description,
    spec: RunSpec,
    source: str,
    record: Record,
    store: Store,
    names: Pseudonyms | None,
) -> None:
    """Add what a record tells of data that are not at hand."""
    data, name = record.data, record.cell.dataset
    predictions = store.predictions(record.key)
    if predictions is not None and names is not None:
        predictions = names.predictions(record, predictions)
    test = None
    if predictions is not None:
        groups = None if predictions.groups is None else list(predictions.groups)
        labels = predictions.labels.tolist()
        test = {"ids": list(predictions.ids), "groups": groups, "labels": labels}
    texts = own_texts(spec, source, name, data.class_names, None, None)
    found.splits[name] = {"fingerprint": data.fingerprint, "test": test, "supports": []}
    found.prompts[name] = {
        "class_names": list(data.class_names),
        "symptoms": _listed(texts.symptoms),
        "symptoms_sha256": data.symptoms_sha256,
        "descriptions": _listed(texts.descriptions),
    }
    found.datasets[source] = {
        "name": name,
        "fingerprint": data.fingerprint,
        "licence": data.licence,
        "sharing": "local",
    }


def _listed(texts: Texts | None) -> dict[str, list[str]] | None:
    return None if texts is None else {name: list(of) for name, of in texts.items()}


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
