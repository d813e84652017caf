"""`hf:ORG/NAME[:CONFIG][@REVISION]` and `hf:FOLDER`: image datasets of the Hugging Face library
`datasets` (the extra `hf`).

A dataset of the Hub is read from the library's cache, which `vipbench fetch` fills; a folder is
what `save_to_disk` wrote, or data files (class folders, Parquet, WebDataset shards, …). Images are
in the one Image column, labels in the one ClassLabel column, or in those that a card names:
`FOLDER/card.yaml`, or `DATA/ORG--NAME.yaml` in the data folder. No code of a repository is run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

import vipbench
from vipbench.api.dataset import SPLITS, DataError, Dataset, Split
from vipbench.api.draw_split import draw_split, groups_by_content
from vipbench.datasets.reading.card import Card, find_card
from vipbench.datasets.reading.paths import data_folder, listed, natural_key
from vipbench.datasets.reading.spelling import split_of
from vipbench.errors import UsageError
from vipbench.fetching import FetchError, Needed
from vipbench.hookspecs import RegisterDataset
from vipbench.images import FORMATS, ImageError, ImageLike
from vipbench.results.records.record import json_sha256

_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?(?:@([\w./-]+))?")
SEED = 1


class HuggingFaceDataset(Dataset):
    """The dataset or folder `argument`. class_names are known once it is loaded."""

    class_names: tuple[str, ...] = ()
    pinned = ""  # the revision that was read, of a dataset of the Hub

    def __init__(self, argument: str | None) -> None:
        if not argument:
            raise UsageError("dataset 'hf' needs a dataset: hf:ORG/NAME[:CONFIG][@REVISION]")
        self.argument = argument
        named = _REPOSITORY.fullmatch(argument)
        self.repository: str = named[1] if named else ""
        self.config: str | None = named[2] if named else None
        self.at: str | None = named[3] if named else None
        name = (self.repository or str(Path(argument).expanduser().resolve())).rpartition("/")[2]
        self.name = f"{name}-{self.config}" if self.config else name or "folder"

    def folder(self, root: Path | None) -> Path | None:
        """The folder that is meant; None where it is a dataset of the Hub."""
        path = Path(self.argument).expanduser()
        for place in [path] if path.is_absolute() or root is None else [path, root / path]:
            if place.is_dir():
                return place
        if self.repository:
            return None
        raise DataError(
            f"'{self.argument}' is not a folder; expected one, or ORG/NAME[:CONFIG][@REVISION]"
        )

    def files(self, root: Path | None) -> Iterable[Needed]:
        """See Dataset."""
        return () if self.folder(root) is not None else (_Cached(self),)

    def load(self, root: Path | None) -> Mapping[str, Split]:
        """Read tables and labels; images when they are asked for. Raises DataError."""
        folder = self.folder(root)
        if folder is not None:
            found = _read_folder(folder, self)
            cards = (folder / "card.yaml", folder / "card.yml")
        else:
            found = _read_cache(self)
            stem = data_folder(root) / self.repository.replace("/", "--")
            cards = (stem.with_name(f"{stem.name}.yaml"), stem.with_name(f"{stem.name}.yml"))
        card = find_card(*cards) or Card(cards[0])
        tables, notes = _splits_of(found)
        first = next(iter(tables.values()))
        image, label = (
            _column(first.features, card, kind, column)
            for column, kind in (("path", "Image"), ("label", "ClassLabel"))
        )
        names = self._names(tables, label, card)
        parts = {
            split: _split(split, table, image, label, card.columns.get("group"), names)
            for split, table in tables.items()
        }
        self.notes = tuple(notes)
        card.apply(self)
        return self._complete(parts)

    def fingerprint(self, splits: Mapping[str, Split]) -> str:
        """See Dataset; of a dataset of the Hub with the revision."""
        content = super().fingerprint(splits)
        return json_sha256([content, self.pinned]) if self.pinned else content

    def _names(self, tables: Mapping[str, Any], label: str, card: Card) -> list[str]:
        """The classes as the data call them; sets class_names."""
        feature = next(iter(tables.values())).features[label]
        every = [value for table in tables.values() for value in table[label]]
        declared = getattr(feature, "names", None)
        if declared is None:
            names = sorted({str(value) for value in every}, key=natural_key)
        else:
            there = set(every)
            names = [name for i, name in enumerate(declared) if i in there]
        if isinstance(card.class_names, tuple):
            if len(card.class_names) != len(names):
                raise DataError(
                    f"card '{card.path}': class_names has {len(card.class_names)} names; the data "
                    f"have the {len(names)} classes {listed(names, 20)}"
                )
            self.class_names = card.class_names
        else:
            self.class_names = card.display_names(names)
        return names

    def _complete(self, parts: dict[str, Split]) -> dict[str, Split]:
        """The three splits, drawn where there are none, or no validation split."""
        if "test" not in parts and len(parts) > 1:
            raise DataError(f"there is no test split; the splits are {listed(parts)}")
        if "train" not in parts and len(parts) > 1:
            raise DataError(f"there is no train split; the splits are {listed(parts)}")
        whole = next(iter(parts.values())) if len(parts) == 1 else parts["train"]
        if set(parts) == set(SPLITS):
            return parts
        ratios = (6.0, 1.0, 3.0) if len(parts) == 1 else (9.0, 1.0, 0.0)
        digests = whole.digests
        groups = None if whole.groups is None else groups_by_content(whole.groups, digests)
        labels = whole.labels.tolist()
        drawn = draw_split(labels, digests, self.class_names, ratios, SEED, groups)
        how = "stratified" if groups is None else "whole groups"
        if len(parts) == 1:
            sentence = f"Split 60/10/30 drawn by vipbench, {how}, seed {SEED}."
        else:
            sentence = f"A tenth of train taken as val by vipbench, {how}, seed {SEED}."
            drawn = {name: drawn[name] for name in ("train", "val")}
        self.caption = f"{self.caption} {sentence}".strip()
        made = parts | {name: _subset(whole, rows.tolist()) for name, rows in drawn.items()}
        return {name: made[name] for name in SPLITS}


class _Images(Sequence[ImageLike]):
    """The images of a table, opened when they are asked for."""

    def __init__(self, table: Any, column: str, rows: Sequence[int]) -> None:
        self._table, self._column, self._rows = table, column, rows

    def take(self, places: Sequence[int]) -> _Images:
        """Some of them."""
        return _Images(self._table, self._column, [self._rows[i] for i in places])

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> ImageLike: ...
    @overload
    def __getitem__(self, index: slice) -> list[ImageLike]: ...
    def __getitem__(self, index: int | slice) -> ImageLike | list[ImageLike]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = self._rows[int(index)]
        found = self._table[row][self._column]
        content = found["bytes"]
        if content is None:
            return Path(found["path"])
        try:
            # Some of the formats that Pillow knows start another program.
            return Image.open(BytesIO(content), formats=FORMATS)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise ImageError(f"the image of row {row} cannot be read: {error}") from None


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise UsageError(
            "hf: needs the package datasets: pip install 'vipbench[hf]', or export the images as "
            "a folder (folder:PATH)"
        ) from None
    return datasets


def _read_folder(folder: Path, dataset: HuggingFaceDataset) -> Any:
    library = _library()
    saved = ("dataset_dict.json", "state.json")
    try:
        with _offline(library):
            if any((folder / name).is_file() for name in saved):
                return library.load_from_disk(str(folder))
            return library.load_dataset(str(folder), dataset.config)
    except Exception as error:
        raise DataError(f"folder '{folder}' cannot be read by datasets: {_line(error)}") from error


def _read_cache(dataset: HuggingFaceDataset) -> Any:
    library = _library()
    source = f"hf:{dataset.argument}"
    try:
        with _offline(library):
            if dataset.at is None:
                found = library.load_dataset(dataset.repository, dataset.config)
            else:
                found = _at_revision(library, dataset, dataset.at)
    except Exception as error:
        raise DataError(
            f"'{dataset.repository}' is not in the cache of datasets, "
            f"'{library.config.HF_DATASETS_CACHE}' ({_line(error)}); `vipbench fetch {source}` "
            "downloads it"
        ) from error
    tables = found.values() if isinstance(found, Mapping) else [found]
    places = [Path(file["filename"]).parent.name for table in tables for file in table.cache_files]
    dataset.pinned = places[0] if places else ""
    return found


def _at_revision(library: Any, dataset: HuggingFaceDataset, revision: str) -> Any:
    """The dataset at a commit, branch or tag; the library itself reads the latest of its cache."""
    from datasets.naming import camelcase_to_snakecase
    from datasets.packaged_modules.cache.cache import Cache
    from huggingface_hub.constants import HF_HUB_CACHE

    owner, _, name = dataset.repository.partition("/")
    refs = Path(HF_HUB_CACHE) / f"datasets--{owner}--{name}" / "refs"
    known = refs / revision
    commit = known.read_text(encoding="ascii").strip() if known.is_file() else revision
    home = Path(library.config.HF_DATASETS_CACHE) / f"{owner}___{camelcase_to_snakecase(name)}"
    there = sorted(home.glob(f"{dataset.config or '*'}/*/*/"))
    fitting = [place for place in there if place.name.startswith(commit)]
    if len(fitting) != 1:
        names = listed(place.name for place in there) or "none"
        configs = {place.parent.parent.name for place in fitting}
        what = f"the configurations {listed(sorted(configs))}" if fitting else f"revisions {names}"
        raise FileNotFoundError(f"of '{revision}' there are {what}; expected one")
    config, version, found = fitting[0].parts[-3:]
    where = {"config_name": config, "version": version, "hash": found}
    return Cache(dataset_name=name, repo_id=dataset.repository, **where).as_dataset()


@contextmanager
def _offline(library: Any) -> Iterator[None]:
    """A run opens no connection: what is not in the cache is not there."""
    before = library.config.HF_HUB_OFFLINE
    library.config.HF_HUB_OFFLINE = True
    library.disable_progress_bars()
    library.logging.set_verbosity_error()
    try:
        yield
    finally:
        library.config.HF_HUB_OFFLINE = before


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _splits_of(found: Any) -> tuple[dict[str, Any], list[str]]:
    """Split -> table, and sentences on what was left out. A single table is of no split."""
    if not isinstance(found, Mapping):
        return {"all": found}, []
    if len(found) == 1:
        return {"all": next(iter(found.values()))}, []
    tables: dict[str, Any] = {}
    others = []
    for name, table in found.items():
        split = split_of(str(name))
        if split is None:
            others.append(str(name))
        elif split in tables:
            raise DataError(
                f"the splits {listed(map(str, found))} name '{split}' twice; expected one"
            )
        else:
            tables[split] = table
    if not tables:
        raise DataError(
            f"the splits are {listed(map(str, found))}; expected train, test and validation"
        )
    notes = [f"the splits {listed(others)} are left out; train, val and test are read"]
    return tables, notes if others else []


def _column(features: Mapping[str, Any], card: Card, kind: str, column: str) -> str:
    named = card.columns.get(column)
    fitting = [name for name, feature in features.items() if type(feature).__name__ == kind]
    if named is not None and named in features:
        return named
    if named is None and len(fitting) == 1:
        return fitting[0]
    wrong = f"'{named}'" if named is not None else f"{len(fitting)} columns of the kind {kind}"
    raise DataError(
        f"the dataset has {'no column ' if named is not None else ''}{wrong} for the {column}; its "
        f"columns are {listed(features, 20)}. Name it in a card '{card.path}': "
        f"`columns: {{{column}: NAME}}`"
    )


def _split(
    name: str, table: Any, image: str, label: str, group: str | None, names: Sequence[str]
) -> Split:
    library = _library()
    declared = getattr(table.features[label], "names", None)
    values = table[label]
    texts = [str(v) if declared is None else declared[v] if v is not None else "" for v in values]
    if declared is not None and any(v is None or not 0 <= v < len(declared) for v in values):
        raise DataError(f"split '{name}' has images without a label; remove the split or rows")
    labels = np.array([names.index(text) for text in texts], dtype=np.int64)
    ids = tuple(f"{name}/{i:06d}" for i in range(len(texts)))
    if type(table.features[image]).__name__ != "Image":
        raise DataError(f"the column '{image}' holds no images; expected the kind Image")
    raw = table.select_columns([image]).cast_column(image, library.Image(decode=False))
    groups = None
    if group is not None:
        if group not in table.features:
            raise DataError(f"the dataset has no column '{group}' for the group")
        groups = tuple(str(v) if v is not None else ids[i] for i, v in enumerate(table[group]))
    return Split(_Images(raw, image, range(len(ids))), labels, ids, groups)


def _subset(split: Split, rows: Sequence[int]) -> Split:
    assert isinstance(split.images, _Images)
    return Split(
        split.images.take(rows),
        split.labels[list(rows)],
        tuple(split.ids[i] for i in rows),
        None if split.groups is None else tuple(split.groups[i] for i in rows),
    )


class _Cached(Needed):
    """A dataset of the Hub in the library's cache."""

    def __init__(self, dataset: HuggingFaceDataset) -> None:
        self.dataset = dataset
        self.what = dataset.repository

    def find(self) -> Path | None:
        """See Needed."""
        try:
            found = _read_cache(self.dataset)
        except DataError:
            return None
        tables = found.values() if isinstance(found, Mapping) else [found]
        files = [file["filename"] for table in tables for file in table.cache_files]
        return Path(files[0]).parent if files else None

    def places(self) -> tuple[str, ...]:
        """See Needed."""
        return (str(_library().config.HF_DATASETS_CACHE),)

    def damage(self) -> str:
        """See Needed."""
        return ""

    def fetch(self, progress: Any = None) -> Path:
        """See Needed."""
        given = self.dataset
        try:
            _library().load_dataset(given.repository, given.config, revision=given.at)
        except Exception as error:
            raise FetchError(f"'{given.repository}' cannot be fetched: {_line(error)}") from error
        found = self.find()
        if found is None:
            raise FetchError(f"'{given.repository}' is not in the cache after it was fetched")
        return found


@vipbench.hookimpl
def register_datasets(register: RegisterDataset) -> None:
    """Register `hf:ORG/NAME` and `hf:FOLDER`."""
    register(
        "hf",
        HuggingFaceDataset,
        help="hf:ORG/NAME[:CONFIG][@REVISION] or hf:FOLDER, of the library datasets",
    )
