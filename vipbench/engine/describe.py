"""What a run depends on, for bundles: the drawn images, the texts and the code of plugins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vipbench.api import Split
from vipbench.engine.planning.cells import Protocol, make_rows
from vipbench.engine.planning.loading import (
    LoadedDataset,
    Texts,
    TextSet,
    load_dataset,
    own_texts,
)
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
    absent: dict[str, tuple[list[Record], str]] = {}
    for source in spec.datasets:
        try:
            loaded[source] = load_dataset(registry, spec, source)
        except UsageError as error:
            if not (records := _records_of(source, spec, store)):
                raise
            absent[source] = records, str(error)
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
    found = Description({}, {}, {}, _files(spec, plugins), _required_plugins(registry, plugins), {})
    for source in spec.datasets:
        if source in absent:
            records, why = absent[source]
            found.absent[_from_records(found, spec, source, records, store, names)] = why
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


def _records_of(source: str, spec: RunSpec, store: Store) -> list[Record]:
    """Finished records tested on the dataset, whole or in parts (folds, halves of the classes):
    one of each part."""
    public = public_source(source, spec.data_root)
    alone = [public_source(other, spec.data_root) for other in spec.datasets].count(public) == 1
    latest = {cell.key for cell in store.plan(latest=True)}
    found: dict[str, Record] = {}
    for record in store.records(history=False):
        made = record.provenance.get("dataset")
        same = isinstance(made, dict) and made.get("source") == public
        # Of several tables each is `csv:PATH`: their names tell them apart.
        known = alone or _name(record, source) in dataset_keys([source])
        if record.ok and record.key in latest and same and known:
            found.setdefault(record.cell.dataset, record)
    return [*found.values()]


def _name(record: Record, source: str) -> str:
    """What tables call the dataset itself: `b` of `a->b [shift]`, `study` of `study@fold-1`."""
    name = split_part(record.cell.dataset)[0].rpartition(ARROW)[2]
    whole, fold = split_fold(name)
    return name if source.endswith(f"@fold-{fold}") else whole


def _from_records(
    found: Description,
    spec: RunSpec,
    source: str,
    records: Sequence[Record],
    store: Store,
    names: Pseudonyms | None,
) -> str:
    """Add what records tell of data that are not at hand; returns the dataset's name."""
    name = _name(records[0], source)
    classes = list(dict.fromkeys(c for record in records for c in record.data.class_names))
    ids: list[str] = []
    groups: list[str] = []
    labels: list[int] = []
    for record in records:
        predictions = store.predictions(record.key)
        if predictions is None:
            continue
        if names is not None:
            predictions = names.predictions(record, predictions)
        ids += predictions.ids
        groups += predictions.groups or []
        labels += [classes.index(record.data.class_names[i]) for i in predictions.labels.tolist()]
    # The fingerprint of a part is not that of the whole.
    whole = split_part(records[0].cell.dataset)[0].rpartition(ARROW)[2] == name
    fingerprint = records[0].data.fingerprint if whole else None
    test = {"ids": ids, "groups": groups or None, "labels": labels}
    texts = own_texts(spec, source, name, classes, None, None)
    found.splits[name] = {"fingerprint": fingerprint, "test": test, "supports": []}
    found.prompts[name] = {
        "class_names": classes,
        "symptoms": _listed(texts.symptoms),
        "symptoms_sha256": records[0].data.symptoms_sha256,
        "descriptions": _listed(texts.descriptions),
        **_given(texts.given.kinds, texts.sets),
    }
    if texts.given.templates is not None:
        found.prompts[name]["templates"] = list(texts.given.templates)
    found.datasets[source] = {
        "name": name,
        "fingerprint": fingerprint,
        "licence": records[0].data.licence,
        "sharing": "local",
    }
    return name


def _given(kinds: Sequence[str], sets: Mapping[str, TextSet]) -> dict[str, Any]:
    """Which kinds of texts files gave, and the sets under labels."""
    found = {
        label: {
            kind: list(texts) if kind == "templates" else _listed(texts)
            for kind in one.kinds
            if (texts := getattr(one, kind)) is not None
        }
        for label, one in sets.items()
    }
    return {"from_files": list(kinds), **({"sets": found} if found else {})}


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
        **_given(data.from_files, data.sets),
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


def _required_plugins(registry: Registry, plugins: list[Plugin]) -> dict[str, str]:
    return {p.name: p.version for p in plugins if not p.builtin and p.version is not None}
