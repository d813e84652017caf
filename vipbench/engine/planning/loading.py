"""Loading a run's datasets and backbones, with their checked splits and texts."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Protocol, TypeAlias, overload

import numpy as np
import numpy.typing as npt
import torch

from vipbench.api import SPLITS, Dataset, ImageBackbone, ImageError
from vipbench.api.dataset import DataError, Split
from vipbench.engine.planning.folds import Fold, divide, in_folds, join
from vipbench.engine.planning.folds import caption as fold_caption
from vipbench.engine.planning.leaks import equal_images, group_overlap, kept_summary
from vipbench.engine.planning.pixels import examine
from vipbench.engine.planning.sampling import nested_order
from vipbench.errors import UsageError, unknown
from vipbench.images import ImageLike
from vipbench.plugins.files import remember
from vipbench.plugins.registry import Plugin, Registry
from vipbench.results.records.protocol_names import fold_name
from vipbench.results.records.record import json_sha256
from vipbench.results.sharing.privacy import public_source
from vipbench.runspec import text_sets
from vipbench.runspec.run import TEXT_FILES, RunSpec
from vipbench.runspec.values import dataset_keys, labelled
from vipbench.symptoms import (
    load_descriptions,
    load_symptoms,
    load_templates,
    replace_knowledge,
)
from vipbench.trust import REMOTE

_NUMBER = re.compile(r"[+-]?\d+(?:[.,]\d+)?")
Texts: TypeAlias = Mapping[str, Sequence[str]]


# Needs that a text tower meets.
TEXTS = frozenset({"text", "symptoms", "descriptions"})


def reads(needs: Set[str], kind: str) -> bool:
    """Whether a method with `needs` reads "symptoms", "descriptions" or "templates", which hold the
    class names of methods that need "text"."""
    return ("text" if kind == "templates" else kind) in needs


@dataclass(frozen=True)
class TextSet:
    """The texts of files under one label. symptoms, descriptions: class name -> texts, None where
    no file gave them. images_seen: of each kind, how many labelled training images per class, at
    most, it was written from."""

    symptoms: Texts | None = None
    descriptions: Texts | None = None
    templates: tuple[str, ...] | None = None
    images_seen: Mapping[str, int] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the files gave."""
        return tuple(kind for kind in TEXT_FILES if getattr(self, kind) is not None)


@dataclass(frozen=True)
class OwnTexts:
    """symptoms, descriptions: those of the dataset, or of files without a label. given: by those
    files. sets: label -> texts of the files under it."""

    symptoms: Texts | None
    descriptions: Texts | None
    given: TextSet
    sets: Mapping[str, TextSet]

    @property
    def notices(self) -> tuple[str, ...]:
        """What a reader must know of the files."""
        every = (self.given, *self.sets.values())
        return tuple(notice for one in every for notice in one.notices)


def own_texts(
    spec: RunSpec,
    source: str,
    name: str,
    class_names: Sequence[str],
    symptoms: Texts | None,
    descriptions: Texts | None,
) -> OwnTexts:
    """Symptoms and descriptions of the dataset `name`, asked for as `source`. A file that says it
    holds descriptions counts as such whichever flag gives it. Raises UsageError."""
    labels = dict.fromkeys(one for some in spec.labels.values() for one in some if one != name)
    given, *sets = (_text_set(spec, label, source, name, class_names) for label in ("", *labels))
    return OwnTexts(
        symptoms if given.symptoms is None else given.symptoms,
        descriptions if given.descriptions is None else given.descriptions,
        given,
        {label: one for label, one in zip(labels, sets, strict=True) if one.kinds},
    )


def _text_set(
    spec: RunSpec, label: str, source: str, name: str, class_names: Sequence[str]
) -> TextSet:
    found: dict[str, Any] = {}
    seen: dict[str, int] = {}
    notices: list[str] = []
    from_file: dict[str, Path] = {}
    for flag, load in (("symptoms", load_symptoms), ("descriptions", load_descriptions)):
        file = _file(getattr(spec, flag), label, source, name)
        if file is None:
            continue
        loaded = load(file, class_names)
        if loaded.kind in from_file:
            raise UsageError(
                f"two files define the {loaded.kind} of '{name}': {from_file[loaded.kind]} and "
                f"{file}"
            )
        from_file[loaded.kind] = file
        found[loaded.kind] = loaded.symptoms
        if loaded.images_seen:
            seen[loaded.kind] = loaded.images_seen
        of = f"{loaded.kind} '{label}'" if label else loaded.kind
        notices += [f"{of} of '{name}': {warning}" for warning in loaded.warnings]
    if (file := _file(spec.templates, label, source, name)) is not None:
        found["templates"] = load_templates(file)
    return TextSet(**found, images_seen=seen, notices=tuple(notices))


def _file(paths: Mapping[str, Path], label: str, source: str, name: str) -> Path | None:
    """The file under the label for the dataset `name`, asked for as `source`."""
    names = dict.fromkeys([source, name, *(n for n in dataset_keys([source]) if n != "*")])
    keys = [text_sets.key(label, dataset) for dataset in (*names, "*")]
    if not label:  # what its card calls a dataset is no label
        keys.insert(0, text_sets.key(name))
    return next((paths[key] for key in keys if key in paths), None)


@dataclass(frozen=True)
class _Subset(Sequence[ImageLike]):
    """Some images of a split, opened when asked for."""

    images: Sequence[ImageLike]
    rows: tuple[int, ...]

    @property
    def file(self) -> Any:
        """See Split."""
        return getattr(self.images, "file", None)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> ImageLike: ...
    @overload
    def __getitem__(self, index: slice) -> list[ImageLike]: ...
    def __getitem__(self, index: int | slice) -> ImageLike | list[ImageLike]:
        if isinstance(index, slice):
            return [self.images[row] for row in self.rows[index]]
        return self.images[self.rows[index]]


def on_validation(
    splits: Mapping[str, Split], spec: RunSpec, name: str, class_names: Sequence[str]
) -> dict[str, Split]:
    """The splits with validation images in the test split's place, as `spec.score_on` says: the
    whole split, or k or min(k,4) of each class, the same for every method and seed.

    Nothing of the test split is read, and nothing that is drawn from here on depends on it.
    Raises DataError where a class has no validation images.
    """
    val = splits["val"]
    for label, count in enumerate(val.counts(len(class_names))):
        if count == 0:
            raise DataError(
                f"class '{class_names[label]}' has no validation images, but --score-on uses them"
            )
    if spec.score_on != "val:full" and spec.shots != ("full",):
        (k,) = spec.shots
        assert isinstance(k, int)
        most = k if spec.score_on == "val:k" else min(k, 4)
    else:
        most = 4 if spec.score_on == "val:min(k,4)" else len(val)
    rows: list[int] = []
    for label in range(len(class_names)):
        rows += nested_order(val, label, 0, "scored")[:most].tolist()
    return {"train": splits["train"], "val": val, "test": subset(val, sorted(rows))}


def subset(split: Split, rows: Sequence[int]) -> Split:
    """Some images of a split, in the order of `rows`."""
    if len(rows) == len(split):
        return split
    labels: npt.NDArray[np.int64] = split.labels[list(rows)]
    groups = None if split.groups is None else tuple(split.groups[i] for i in rows)
    ids = tuple(split.ids[i] for i in rows)
    planned = None if split.planned is None else tuple(split.planned[i] for i in rows)
    images = _Subset(split.images, tuple(rows))
    return Split(images, labels, ids, groups, planned, split.pixels)


Bound = tuple[tuple[str, ...], ...]


def choices(sets: Mapping[str, TextSet], given: Set[str], needs: Set[str]) -> list[dict[str, str]]:
    """The texts that the rows of a method with `needs` read: kind -> label, where the kind is from
    a set. Kinds that share a label go together, others are combined. given: the kinds of which
    there are texts without a label."""
    read = [kind for kind in TEXT_FILES if reads(needs, kind)]
    labels = {k: [name for name, one in sets.items() if k in one.kinds] for k in read}
    axes: list[list[str]] = []
    for kind in filter(labels.get, read):
        joined = [axis for axis in axes if any({*labels[k]} & {*labels[kind]} for k in axis)]
        axes = [axis for axis in axes if axis not in joined]
        axes.append([*(k for axis in joined for k in axis), kind])
    found = []
    for axis in axes:
        names = dict.fromkeys(name for kind in axis for name in labels[kind])
        own = [{kind: name for kind in axis if name in labels[kind]} for name in names]
        found.append([*([{}] if {*axis} & given else []), *own])
    combined = [dict(pair for one in some for pair in one.items()) for some in product(*found)]
    return [{kind: one[kind] for kind in read if kind in one} for one in combined]


@dataclass(frozen=True)
class LoadedDataset:
    """A dataset with its splits read, its symptoms and descriptions in the order of its classes.

    source: how a run asks for it, as records tell it: PATH stands for a path. images_seen: kind of
    texts ("symptoms" or "descriptions") -> how many labelled training images per class, at most,
    they were written from; what is not in it was written from none. from_files: kinds of texts
    that the user's own files gave. sets: label -> further texts. chosen: kind of texts -> label of
    the set that it is from. notes: what its records keep of odd input, see Dataset.notes.
    folds: of data in folds, where each of its splits is all images. fold: which one this is.
    """

    dataset: Dataset
    plugin: Plugin
    splits: Mapping[str, Split]
    fingerprint: str
    symptoms: Bound | None
    symptoms_sha256: str | None
    notices: tuple[str, ...]
    descriptions: Bound | None = None
    source: str = ""
    knowledge: str = "symptoms"
    images_seen: Mapping[str, int] = field(default_factory=dict)
    from_files: tuple[str, ...] = ()
    sets: Mapping[str, TextSet] = field(default_factory=dict)
    chosen: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    folds: tuple[Fold, ...] = ()
    fold: Fold | None = None

    def parts(self) -> dict[str, Split]:
        """What images are apart in: splits or folds."""
        if not self.folds:
            return dict(self.splits)
        return {f.name: subset(self.splits["test"], f.rows["test"]) for f in self.folds}

    def with_texts(self, choice: Mapping[str, str]) -> LoadedDataset:
        """This with the texts of its sets that `choice` names: kind -> label."""
        own = {
            kind: getattr(self.sets[label], kind)
            for kind, label in choice.items()
            if label in self.sets and kind in self.sets[label].kinds
        }
        if not own:
            return self
        names = self.dataset.class_names
        changes: dict[str, Any] = {
            "chosen": {kind: choice[kind] for kind in own},
            "from_files": tuple(dict.fromkeys((*self.from_files, *own))),
            "images_seen": {k: n for k, n in self.images_seen.items() if k not in own}
            | {k: n for k in own if (n := self.sets[choice[k]].images_seen.get(k))},
        }
        for kind in own:
            if kind == "templates":
                changes["dataset"] = copy.copy(self.dataset)
                changes["dataset"].templates = own[kind]
            else:
                changes[kind] = _bind(own[kind], names)
        if "symptoms" in own:
            changes["symptoms_sha256"] = sha(changes["symptoms"])
        return dataclasses.replace(self, **changes)

    def with_knowledge(self, knowledge: str) -> LoadedDataset:
        """This with other texts in the symptoms' place; see vipbench.symptoms.knowledge."""
        if self.symptoms is None or knowledge == self.knowledge:
            return self
        names = self.dataset.class_names
        own = dict(zip(names, self.symptoms, strict=True))
        bound = _bind(replace_knowledge(own, knowledge), names)
        # What is turned into its opposite was still read off images; what replaces it was not.
        seen = self.images_seen if knowledge == "incorrect" else {}
        return dataclasses.replace(
            self, symptoms=bound, symptoms_sha256=sha(bound), knowledge=knowledge, images_seen=seen
        )

    def numbered(self) -> str:
        """A sentence where classes are named by numbers, which mean nothing to a text tower."""
        names = [name for name in self.dataset.class_names if _NUMBER.fullmatch(name)]
        if not names:
            return ""
        shown = ", ".join(f"'{name}'" for name in names[:5]) + (", …" if len(names) > 5 else "")
        return f"its classes are named by numbers ({shown}), which mean nothing to a text tower"

    def texts_saw(self, needs: Set[str]) -> int:
        """The most labelled images of a class behind the texts that a method with `needs` reads."""
        return max((n for kind, n in self.images_seen.items() if kind in needs), default=0)

    def counts(self, split: str) -> list[int]:
        """Images of each class in a split."""
        return self.splits[split].counts(len(self.dataset.class_names))


@dataclass(frozen=True)
class LoadedBackbone:
    """A backbone with its weights. source: as the run asks for it, maybe with a label."""

    backbone: ImageBackbone
    plugin: Plugin
    source: str

    @property
    def name(self) -> str:
        """What tables show."""
        return labelled(self.source)[0] or self.backbone.name


def runs_own_code(registry: Registry, source: str) -> bool:
    """Whether the backbone runs code of its model's repository, which is a plugin of its own."""
    one = registry.backbones.get(labelled(source)[1].partition(":")[0])
    return one is not None and one.plugin.builtin and source.endswith(REMOTE)


class Beside:
    """Backbones that methods read beside the run's, each loaded once. loaded: the run's own.
    device: where they are put. plugin_set: the plugins that this process may load, None for all."""

    def __init__(
        self,
        registry: Registry,
        loaded: Sequence[LoadedBackbone] = (),
        device: torch.device | str = "cpu",
        plugin_set: frozenset[str] | None = None,
    ) -> None:
        self.further: dict[str, LoadedBackbone] = {}
        self._plugin_set = plugin_set
        self._registry, self._device = registry, device
        self._own = {one.source: one for one in loaded}
        self._failed: dict[str, UsageError] = {}

    def load(self, source: str) -> LoadedBackbone:
        """The backbone of `NAME[:ARG]`; raises UsageError."""
        if source in self._failed:
            raise self._failed[source]
        if source in self._own:
            return self._own[source]
        allowed = self._plugin_set is None or source in self._plugin_set
        if not allowed and runs_own_code(self._registry, source):
            raise UsageError(f"'{source}' runs code that may not run in this process")
        if source not in self.further:
            try:
                found = load_backbone(self._registry, source)
            except UsageError as error:
                self._failed[source] = error
                raise
            found.backbone.to(self._device)
            self.further[source] = found
        return self.further[source]


class _FromPlugin(Protocol):
    """What a plugin gave."""

    @property
    def plugin(self) -> Plugin: ...


def users(*made: _FromPlugin) -> frozenset[Plugin]:
    """The users' plugins that something comes from."""
    return frozenset(one.plugin for one in made if not one.plugin.builtin)


def load_dataset(registry: Registry, spec: RunSpec, source: str) -> LoadedDataset:
    """Read `source`; raises UsageError naming what is wrong with the data."""
    dataset, plugin = registry.dataset(source)
    unread = _name_images(dataset, spec, source)
    try:
        splits = dict(dataset.load(spec.data_root))
        asked = dataset.name
        folded = in_folds(splits)
        missing = [name for name in SPLITS if name not in splits and not folded]
        if missing:
            raise DataError(f"the splits {', '.join(missing)} are missing")
        _check_splits(dataset, splits)
        overlap = group_overlap(splits)
        if overlap and folded:
            raise DataError(
                f"groups cross folds: {overlap}; expected each group in one fold, as `vipbench "
                "dataset split --folds N --group COLUMN` writes them"
            )
        if overlap and not spec.allow_group_overlap:
            raise DataError(
                f"groups cross splits: {overlap}; a model would be tested on patients that it was "
                f"trained on. Fix the split, or give --allow-group-overlap to run anyway"
                + "".join(f" ({note})" for note in dataset.notes)
            )
        # A run that is scored on validation images reads no test image.
        tested = spec.score_on == "test"
        read = splits if tested or folded else {name: splits[name] for name in ("train", "val")}
        read, seen = examine(read, dataset.pixels)
        splits |= read
        equal = equal_images(read, dataset.class_names)
        folds: tuple[Fold, ...] = ()
        fold: Fold | None = None
        if folded:
            fingerprint = dataset.fingerprint(splits)
            joined = join(splits)
            folds = tuple(divide(splits, joined, dataset.class_names))
            splits = dict.fromkeys(SPLITS, joined)
            dataset.caption = (
                f"{dataset.caption} {fold_caption(len(folds), joined.groups is not None)}".strip()
            )
            if dataset.fold is not None:
                fold = _find_fold(folds, dataset.fold, dataset.name)
                splits = {name: subset(joined, fold.rows[name]) for name in SPLITS}
            elif not tested:
                raise UsageError(
                    f"dataset '{source}' is in {len(folds)} folds with validation images of their "
                    f"own, and the run is scored on these; name one fold: {source}@{folds[0].name}"
                )
        if not tested:
            splits = on_validation(splits, spec, dataset.name, dataset.class_names)
        if not folded:
            fingerprint = dataset.fingerprint(splits)
        if fold is not None:
            fingerprint = of_fold(fingerprint, fold)
            own = {name: range(len(split)) for name, split in splits.items()}
            folds, fold = (), dataclasses.replace(fold, rows=own)
            dataset.name = fold_name(dataset.name, fold.name)
    except (DataError, ImageError) as error:
        raise UsageError(f"dataset '{source}': {error}") from error
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{plugin}: dataset '{source}' failed to load: {type(error).__name__}: {error}"
        ) from error
    notes = [*dataset.notes, *seen, *([f"groups cross splits: {overlap}"] if overlap else [])]
    if equal is not None:
        notes.append(f"equal images, for instance {equal.example}")
        dataset.caption = f"{dataset.caption} {equal.sentence}.".strip()
    notices = [f"{dataset.name}: licence: {dataset.licence}"]
    notices += [f"{dataset.name}: {note}" for note in (*notes, *unread)]
    leaks = kept_summary(fingerprint)
    if leaks:
        notices.append(f"{dataset.name}: `vipbench audit` found {leaks}")
    names = dataset.class_names
    texts = own_texts(spec, source, asked, names, dataset.symptoms, dataset.descriptions)
    bound = _bind(texts.symptoms, names)
    if texts.given.templates is not None:
        dataset.templates = texts.given.templates
    return LoadedDataset(
        dataset,
        plugin,
        splits,
        fingerprint,
        bound,
        None if bound is None else sha(bound),
        (*notices, *texts.notices),
        _bind(texts.descriptions, names),
        public_source(source, spec.data_root),
        images_seen=texts.given.images_seen,
        from_files=texts.given.kinds,
        sets=texts.sets,
        notes=tuple(notes),
        folds=folds,
        fold=fold,
    )


def load_whole(registry: Registry, spec: RunSpec, source: str, what: str) -> LoadedDataset:
    """`load_dataset` for `what`, which reads one training and one test split. Raises UsageError."""
    data = load_dataset(registry, spec, source)
    if data.folds:
        raise UsageError(
            f"dataset '{source}' is in {len(data.folds)} folds, and {what} takes one; name it: "
            f"{source}@{data.folds[0].name}"
        )
    return data


def of_fold(fingerprint: str, fold: Fold) -> str:
    """The fingerprint of a fold of the data with this fingerprint."""
    return sha([fingerprint, fold.name])


def _find_fold(folds: Sequence[Fold], name: str, dataset: str) -> Fold:
    for fold in folds:
        if fold.name == name:
            return fold
    raise unknown(f"fold of '{dataset}'", name, [fold.name for fold in folds])


def _name_images(dataset: Dataset, spec: RunSpec, source: str) -> list[str]:
    """Tell `dataset` the folder that the run names for its images; a notice where it reads none.
    Raises UsageError where the folder was named for it alone."""
    images = spec.images
    root = images.get(source, images.get(dataset.name, images.get("*")))
    if root is None:
        return []
    if dataset.takes_images:
        dataset.image_root = root
        return []
    why = f"--images {root} is not for it: it lists no image files, as csv:, split: and folder: do"
    if images.get("*") != root or len(spec.datasets) == 1:
        raise UsageError(f"dataset '{source}': {why}")
    return [why]


def load_backbone(registry: Registry, source: str) -> LoadedBackbone:
    """Load `source` with its weights; raises UsageError.

    The code of a plugin, or of the model's repository, enters the backbone's fingerprint, of which
    keys and cached features are made: an edited forward pass never finds the features of the old
    one."""
    backbone, plugin = registry.backbone(labelled(source)[1])
    code = backbone.remote_code
    if plugin.builtin and code:
        plugin = Plugin(backbone.name, None, Path(REMOTE), code, False, code, source)
        remember(plugin)
    if not plugin.builtin:
        try:
            backbone.fingerprint = sha([backbone.fingerprint, plugin.code_sha256])
        except AttributeError as error:
            raise UsageError(
                f"{plugin}: backbone '{source}': `fingerprint` must be an attribute, to which "
                f"the code of the plugin is added ({error})"
            ) from error
    return LoadedBackbone(backbone, plugin, source)


def _check_splits(dataset: Dataset, splits: Mapping[str, Split]) -> None:
    names = dataset.class_names
    if len(set(names)) != len(names) or len(names) < 2:
        raise DataError(f"expected two or more different class names, got {list(names)}")
    for name in splits:
        labels = splits[name].labels
        bad = [int(i) for i in ((labels < 0) | (labels >= len(names))).nonzero()[0][:1]]
        if bad:
            image = splits[name].ids[bad[0]]
            raise DataError(
                f"image '{image}' of split '{name}' has the label {labels[bad[0]]}; "
                f"expected 0 to {len(names) - 1} ({len(names)} classes)"
            )
    for name in ("train", "test") if "train" in splits else ():
        for label, count in enumerate(splits[name].counts(len(names))):
            if count == 0:
                raise DataError(f"class '{names[label]}' has no image in split '{name}'")


def _bind(texts: Mapping[str, Sequence[str]] | None, names: Sequence[str]) -> Bound | None:
    return None if texts is None else tuple(tuple(texts[name]) for name in names)


def sha(content: Any) -> str:
    """See json_sha256."""
    return json_sha256(content)
