"""What is trained, and on what it is tested, under each protocol of a run.

A scene is data to train on and the parts that each training is tested on; docs/protocols.md says
where each protocol comes from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vipbench.api import Dataset, Split
from vipbench.engine.planning.loading import Bound, LoadedDataset, of_fold, sha, subset
from vipbench.engine.planning.sampling import (
    Indices,
    Sampler,
    ShotsUnit,
    SupportIndices,
    Validation,
    draw_prevalent,
    draw_support,
)
from vipbench.errors import UsageError, unknown
from vipbench.results.records.protocol_names import (
    BASE,
    NEW,
    fold_name,
    part_name,
    target_name,
)
from vipbench.runspec.protocol import find
from vipbench.runspec.run import RunSpec

# Fewer classes leave no choice among the new ones.
FEWEST_CLASSES = 4
# What a protocol's name does not make of the numbers: part of records, not of keys.
_NAMES = ("source", "source_given", "target")


@dataclass(frozen=True)
class View(LoadedDataset):
    """Classes `first`, `first + 1`, … of a dataset as one of their own, a dataset under another
    name, or the images of a fold. home: the name of the dataset that has the images; its splits are
    whole."""

    home: str = ""
    first: int = 0

    def counts(self, split: str) -> list[int]:
        """Images of each class in a split."""
        last = self.first + len(self.dataset.class_names)
        whole = self.splits[split]
        if self.fold is not None:
            whole = subset(whole, self.fold.rows[split])
        return whole.counts(last)[self.first : last]


class _Named(Dataset):
    """A loaded dataset under another name, or some of its classes."""

    def __init__(self, dataset: Dataset, name: str, class_names: tuple[str, ...]) -> None:
        for key in ("templates", "licence", "sharing", "citation", "caption"):
            setattr(self, key, getattr(dataset, key))
        # A class attribute of other datasets.
        vars(self)["revision"] = dataset.revision
        self.name, self.class_names = name, class_names

    def load(self, root: Path | None) -> Mapping[str, Split]:
        """Never asked for: it is loaded already."""
        raise NotImplementedError


@dataclass(frozen=True)
class Part:
    """What a training is tested on, where that is not the test split of its own data.

    data: named as tables name it. protocol_fields: for the record. columns: of each class those of
    the training that stand for it; None binds the trained method to the classes of `data`.
    """

    data: LoadedDataset
    protocol_fields: Mapping[str, Any]
    columns: tuple[tuple[int, ...], ...] | None = None
    notes: tuple[str, ...] = ()

    def key(self, needs: frozenset[str]) -> dict[str, Any]:
        """Of what the key of a cell is made, besides its training."""
        data = self.data
        parts: dict[str, Any] = {
            "data": data.fingerprint,
            "loader.revision": data.dataset.revision,
            "texts": sha([data.dataset.class_names, data.dataset.templates]),
        }
        if self.columns is not None:
            return parts | {"columns": self.columns}
        if "symptoms" in needs:
            parts["symptoms"] = data.symptoms_sha256
        if "descriptions" in needs:
            parts["descriptions"] = sha(data.descriptions)
        return parts


@dataclass(frozen=True)
class Scene:
    """data: what is trained on. parts: what each training is tested on; None is the test split of
    `data`. protocol_fields: for its record. reason: why nothing of it can be run."""

    data: LoadedDataset
    parts: tuple[Part | None, ...] = (None,)
    protocol_fields: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None

    def with_texts(self, choice: Mapping[str, str], knowledge: str) -> Scene:
        """This with other texts, of what is trained on and tested; see LoadedDataset."""

        def changed(data: LoadedDataset) -> LoadedDataset:
            return data.with_texts(choice).with_knowledge(knowledge)

        parts = (p and dataclasses.replace(p, data=changed(p.data)) for p in self.parts)
        return dataclasses.replace(self, data=changed(self.data), parts=tuple(parts))


def home(data: LoadedDataset) -> str:
    """The name of the dataset that has the images."""
    return data.home if isinstance(data, View) else data.dataset.name


def test_rows(data: LoadedDataset) -> list[int]:
    """Places of the tested images in the test split of their home."""
    test = data.splits["test"]
    if not isinstance(data, View):
        return list(range(len(test)))
    last = data.first + len(data.dataset.class_names)
    rows = np.flatnonzero((test.labels >= data.first) & (test.labels < last)).tolist()
    if data.fold is None:
        return rows
    tested = set(data.fold.rows["test"])
    return [row for row in rows if row in tested]


def test_split(data: LoadedDataset) -> Split:
    """The tested images, labels from 0."""
    split = subset(data.splits["test"], test_rows(data))
    if isinstance(data, View) and data.first:
        return dataclasses.replace(split, labels=split.labels - data.first)
    return split


def key_of(protocol_fields: Mapping[str, Any]) -> dict[str, Any]:
    """What of a protocol makes numbers."""
    return {name: value for name, value in protocol_fields.items() if name not in _NAMES}


def arrange(spec: RunSpec, datasets: Mapping[str, LoadedDataset]) -> list[Scene]:
    """What is trained and tested, in the order of the run's datasets. datasets: by source, all of
    the run's or some. Raises UsageError where the classes of a domain shift do not map."""
    name = spec.protocol.name
    if spec.protocol.transfers:
        return _transfer(spec, datasets)
    every = [part for data in datasets.values() for part in _folds(data)]
    if name == "base-to-new":
        return [_base_to_new(data) for data in every]
    if name in ("imbalanced", "validation-free"):
        views = [_view(data, part_name(data.dataset.name, name)) for data in every]
        return [Scene(view, protocol_fields={"name": name}) for view in views]
    return [Scene(data) for data in every]


def _folds(data: LoadedDataset) -> list[LoadedDataset]:
    """Each fold of data in folds; else the data."""
    if not data.folds:
        return [data]
    name, fields = data.dataset.name, _fields(data)
    return [
        View(
            **fields
            | {
                "dataset": _Named(
                    data.dataset, fold_name(name, fold.name), data.dataset.class_names
                ),
                "fingerprint": of_fold(data.fingerprint, fold),
                "home": name,
                "folds": (),
                "fold": fold,
            }
        )
        for fold in data.folds
    ]


def _fields(data: LoadedDataset) -> dict[str, Any]:
    return {f.name: getattr(data, f.name) for f in dataclasses.fields(data)}


def _view(data: LoadedDataset, name: str, first: int = 0, last: int | None = None) -> View:
    names = data.dataset.class_names[first:last]
    whole = len(names) == len(data.dataset.class_names)

    def some(texts: Bound | None) -> Bound | None:
        return None if texts is None else texts[first:last]

    fields = _fields(data)
    symptoms = some(data.symptoms)
    fields |= {"dataset": _Named(data.dataset, name, names), "home": home(data), "first": first}
    fields |= {"symptoms": symptoms, "descriptions": some(data.descriptions)}
    if not whole and symptoms is not None:
        fields["symptoms_sha256"] = sha(symptoms)
    return View(**fields)


def _base_to_new(data: LoadedDataset) -> Scene:
    name, n = data.dataset.name, len(data.dataset.class_names)
    half = (n + 1) // 2
    base = _view(data, part_name(name, BASE), 0, half)
    new = _view(data, part_name(name, NEW), half, n)
    reason = None
    if n < FEWEST_CLASSES:
        reason = (
            f"'{name}' has {n} classes; base-to-new needs {FEWEST_CLASSES} or more, so that there "
            "is a choice among the base classes and among the new ones"
        )
    fields = {"name": "base-to-new"}
    parts = (None, Part(new, fields | {"part": NEW}))
    return Scene(base, parts, fields | {"part": BASE}, reason)


def _transfer(spec: RunSpec, datasets: Mapping[str, LoadedDataset]) -> list[Scene]:
    by_source = dict(datasets)
    trained = spec.protocol.trained_on(spec.datasets)
    if trained not in by_source:
        return []
    for given, data in by_source.items():
        if data.folds:
            raise UsageError(
                f"protocol: '{spec.protocol.name}' takes no folds, and '{given}' has "
                f"{len(data.folds)}; name one: {given}@{data.folds[0].name}"
            )
    source, shift = by_source.pop(trained), spec.protocol.name == "domain-shift"
    classes = {find(name, spec.datasets): of for name, of in spec.protocol.classes.items()}
    parts: list[Part | None] = [None]
    for given, target in by_source.items():
        names = source.dataset.name, target.dataset.name
        protocol_fields: dict[str, Any] = {
            "name": spec.protocol.name,
            "source": names[0],
            "source_given": source.source,
            "target": names[1],
        }
        columns: tuple[tuple[int, ...], ...] | None = None
        notes: tuple[str, ...] = ()
        if shift:
            columns, protocol_fields["classes"], notes = _columns(
                source, target, classes.get(given, {})
            )
        view = _view(target, target_name(*names, shift))
        parts.append(Part(view, protocol_fields, columns, notes))
    return [Scene(source, tuple(parts))]


def _columns(
    source: LoadedDataset, target: LoadedDataset, given: Mapping[str, Sequence[str]]
) -> tuple[tuple[tuple[int, ...], ...], dict[str, list[str]], tuple[str, ...]]:
    """Of each class of the target its classes of the source, by place and by name; notes."""
    ours, theirs = source.dataset.class_names, target.dataset.class_names
    names = source.dataset.name, target.dataset.name
    place = {_plain(name): i for i, name in enumerate(ours)}
    mapped = {}
    for own, stand in given.items():
        if _plain(own) not in map(_plain, theirs):
            raise unknown(f"class of '{names[1]}'", own, theirs, "protocol.classes names it.")
        for one in stand:
            if _plain(one) not in place:
                raise unknown(f"class of '{names[0]}'", one, ours, "protocol.classes names it.")
        mapped[_plain(own)] = tuple(place[_plain(one)] for one in stand)
    for own in theirs:
        if _plain(own) not in mapped and _plain(own) in place:
            mapped[_plain(own)] = (place[_plain(own)],)
    lost = [own for own in theirs if _plain(own) not in mapped]
    if lost:
        raise UsageError(
            f"protocol: no class of '{names[0]}' ({', '.join(ours)}) corresponds to "
            f"{', '.join(repr(own) for own in lost)} of '{names[1]}'; give protocol.classes: "
            f"{{{names[1]}: {{{lost[0]}: {ours[0]}}}}}, or leave '{names[1]}' out"
        )
    columns = tuple(mapped[_plain(own)] for own in theirs)
    used = [i for column in columns for i in column]
    twice = [ours[i] for i in dict.fromkeys(used) if used.count(i) > 1]
    if twice:
        raise UsageError(
            f"protocol: '{twice[0]}' of '{names[0]}' maps to two classes of '{names[1]}', which a "
            f"model cannot then distinguish"
        )
    mapping = {own: [ours[i] for i in column] for own, column in zip(theirs, columns, strict=True)}
    left = [name for i, name in enumerate(ours) if i not in used]
    notes = (f"not predicted on {names[1]}, which has no such class: {', '.join(left)}",) * bool(
        left
    )
    return columns, mapping, notes


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ")


def draw(
    protocol: str,
    data: LoadedDataset,
    shots: int | None,
    seed: int,
    sampler: Sampler,
    validation: Validation,
    unit: ShotsUnit,
) -> SupportIndices:
    """The support set and validation images, as places in the whole splits. protocol: the run's.
    Raises SamplingError."""
    if isinstance(data, View) and (fold := data.fold) is not None:
        splits = {name: subset(split, fold.rows[name]) for name, split in data.splits.items()}
        own = dataclasses.replace(data, splits=splits, fold=None)
        found = draw(protocol, own, shots, seed, sampler, validation, unit)
        return _each(found, lambda split, rows: np.array(fold.rows[split], dtype=np.int64)[rows])
    train, val, names = data.splits["train"], data.splits["val"], data.dataset.class_names
    if protocol == "imbalanced":
        return draw_prevalent(train, val, names, shots, seed, validation)

    def drawn(train: Split, val: Split, names: Sequence[str]) -> SupportIndices:
        return draw_support(train, val, len(names), names, shots, seed, sampler, validation, unit)

    if int(train.labels.max(initial=0)) < len(names):
        return drawn(train, val, names)
    places = {s: np.flatnonzero(data.splits[s].labels < len(names)) for s in ("train", "val")}
    if sampler == "coop":
        # As its programs do: drawn from all classes, of which some are then left out.
        whole = max(int(split.labels.max(initial=0)) for split in (train, val)) + 1
        every = (*names, *(f"class {label}" for label in range(len(names), whole)))
        found = drawn(train, val, every)
        return _each(found, lambda split, rows: rows[np.isin(rows, places[split])])
    found = drawn(
        subset(train, places["train"].tolist()), subset(val, places["val"].tolist()), names
    )
    return _each(found, lambda split, rows: places[split][rows])


def _each(found: SupportIndices, change: Callable[[str, Indices], Indices]) -> SupportIndices:
    val = None if found.val is None else change("val", found.val)
    return SupportIndices(change("train", found.train), val)
