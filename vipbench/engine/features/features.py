"""Images and their features, each encoded once, for one backbone and one dataset."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vipbench.api import ImageBackbone, Split, Views
from vipbench.engine.features.cache import Item, Shelf, open_shelf
from vipbench.engine.features.images import ImageReader
from vipbench.engine.features.views import VIEW_REVISION
from vipbench.engine.precision import feature_precision
from vipbench.images import READER_REVISION
from vipbench.plugins.files import Plugin, loaded_plugins
from vipbench.runspec.values import FeaturePrecision

# Part of the cache's keys and of a cell's: raise it when the same pixels give other features.
FEATURE_REVISION = 3
# The same of texts.
TEXT_REVISION = 1
# Batches are padded to this size, so that a feature does not depend on its batch mates.
ENCODE_BATCH = 32
# So many batches make a block of the cache.
BLOCK_BATCHES = 32


@lru_cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries that decode, resize and encode."""
    names = ("torch", "torchvision", "open_clip_torch", "transformers", "timm", "pillow")
    return {name: version(name) for name in names}


@dataclass
class _ViewTable:
    """Features (slots, V, D) of training views: image -> slot, and how many views each has."""

    slots: dict[int, int] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    table: Tensor | None = None

    def reserve(self, indices: Sequence[int], count: int, dim: int, device: torch.device) -> None:
        for i in indices:
            self.slots.setdefault(i, len(self.slots))
        old = self.table
        rows, views = len(self.slots), max(count, 0 if old is None else old.shape[1])
        if old is None or old.shape[:2] != (rows, views):
            self.table = torch.zeros(rows, views, dim, device=device)
            if old is not None:
                self.table[: old.shape[0], : old.shape[1]] = old


@dataclass
class Features:
    """Features of one dataset under one backbone, kept in memory and encoded on demand.

    Indices are positions in a split. All tensors live on the backbone's device.
    """

    backbone: ImageBackbone
    splits: Mapping[str, Split]
    dataset_key: str
    progress: Callable[[float], None] = lambda share: None
    note: Callable[[str], None] = lambda text: None
    encoded_images: int = 0
    # Asked before features enter the cache: those of a tower that was changed must not.
    before_keeping: Callable[[], None] = lambda: None
    # The users' plugins that backbone and dataset come from.
    plugins: frozenset[Plugin] = frozenset()
    # Where the cache is; None: `cache_folder()`.
    folder: Path | None = None
    precision: FeaturePrecision = "fp32"
    _plain: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    _views: dict[tuple[object, ...], _ViewTable] = field(default_factory=dict)
    _shelves: dict[tuple[object, ...], Shelf] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._reader = ImageReader(self.backbone, self.splits, self.note)

    def plain(self, split: str, indices: Sequence[int]) -> Tensor:
        """Features (N,D) of the evaluation view."""
        store = self._plain.setdefault(split, {})
        wanted = [int(i) for i in indices]
        missing = [(i, 0) for i in dict.fromkeys(wanted) if i not in store]
        for part, features in self._obtain(split, missing, None):
            store.update(zip([i for i, _ in part], features, strict=True))
        return torch.stack([store[i] for i in wanted])

    def prepare_views(
        self, split: str, indices: Sequence[int], views: Views, seed: int, count: int
    ) -> None:
        """Encode the training views 0 to count-1 under `seed` that are not there yet."""
        table = self._table(split, views, seed)
        wanted = list(dict.fromkeys(int(i) for i in indices))
        table.reserve(wanted, count, self.backbone.dim, self.backbone.device)
        assert table.table is not None
        missing = [(i, v) for i in wanted for v in range(table.counts.get(i, 0), count)]
        for part, features in self._obtain(split, missing, (views, seed)):
            slots = [table.slots[i] for i, _ in part]
            table.table[slots, [v for _, v in part]] = features
        for i in wanted:
            table.counts[i] = max(count, table.counts.get(i, 0))

    def view(self, split: str, indices: Sequence[int], views: Views, seed: int, v: int) -> Tensor:
        """Features (N,D) of training view `v`; prepared before."""
        table = self._table(split, views, seed)
        assert table.table is not None
        slots = [table.slots[int(i)] for i in indices]
        return table.table[slots, v]

    def images(self, split: str, items: Sequence[Item], views: tuple[Views, int] | None) -> Tensor:
        """Preprocessed images (N,3,H,H) of `items` (index, view): the evaluation view where
        `views` is None, else training views of (views, seed)."""
        return self._reader.get(split, items, views)

    def cached(self, split: str, items: Sequence[Item], views: tuple[Views, int] | None) -> int:
        """How many of `items` need not be encoded."""
        shelves = (self._shelf(split, views, codes) for codes in self._codes())
        return len({item for shelf in shelves for item in shelf.get(items)})

    def unshared(
        self, split: str, items: Sequence[Item], views: tuple[Views, int] | None
    ) -> list[Item]:
        """Those of `items` that no process without other plugins has encoded yet."""
        found = self._shelf(split, views, _codes(self.plugins)).get(items)
        return [item for item in items if item not in found]

    def fetch(self, split: str, items: Sequence[Item], views: tuple[Views, int] | None) -> None:
        """Encode those of `items` that are not in the cache."""
        for _ in self._obtain(split, items, views):
            pass

    def _table(self, split: str, views: Views, seed: int) -> _ViewTable:
        return self._views.setdefault((split, views.scale, views.flip, seed), _ViewTable())

    def _obtain(
        self, split: str, items: Sequence[Item], views: tuple[Views, int] | None
    ) -> Iterator[tuple[Sequence[Item], Tensor]]:
        """Features (n,D) of `items`, n at a time: from the cache, else encoded and kept there."""
        rest, shared = list(items), _codes(self.plugins)
        for codes in self._codes() if rest else ():
            shelf = self._shelf(split, views, codes)
            if codes == shared and len(self._codes()) > 1:
                shelf.refresh()  # another process may have encoded them for this one
            found = shelf.get(rest)
            if found:
                yield list(found), torch.stack(list(found.values())).to(self.backbone.device)
            rest = [item for item in rest if item not in found]
            self._tell(shelf)
        if rest:
            # Another worker may be encoding them just now.
            with shelf.filling(lambda: self.progress(0.0)):
                yield from self._add(shelf, split, rest, views)
            self._tell(shelf)

    def _tell(self, shelf: Shelf) -> None:
        for problem in shelf.problems:
            self.note(problem)
        shelf.problems.clear()

    def _add(
        self, shelf: Shelf, split: str, items: Sequence[Item], views: tuple[Views, int] | None
    ) -> Iterator[tuple[Sequence[Item], Tensor]]:
        """Features (n,D) of `items`, n at a time: from others' blocks, else encoded and kept."""
        found = shelf.get(items)
        if found:
            yield list(found), torch.stack(list(found.values())).to(self.backbone.device)
        rest = [item for item in items if item not in found]
        if rest:
            with self._reader.decoding(len(rest)) as ahead:
                yield from self._fill(shelf, split, rest, views, ahead)

    def _fill(
        self,
        shelf: Shelf,
        split: str,
        rest: Sequence[Item],
        views: tuple[Views, int] | None,
        ahead: int,
    ) -> Iterator[tuple[Sequence[Item], Tensor]]:
        """Encode `rest` and keep it: features (n,D) of n items at a time."""
        kept: list[tuple[Sequence[Item], Tensor]] = []
        starts = range(0, len(rest), ENCODE_BATCH)
        parts = [rest[i : i + ENCODE_BATCH] for i in starts]
        # While a batch is encoded, the next ones are decoded.
        begun = map(partial(self._reader.begin, split, views=views), parts)
        ready = deque(islice(begun, ahead))
        for start, part in zip(starts, parts, strict=True):
            pixels = ready.popleft()()
            ready.extend(islice(begun, 1))
            features = self._encode(pixels)
            kept.append((part, features))
            if len(kept) == BLOCK_BATCHES or start + ENCODE_BATCH >= len(rest):
                self.before_keeping()
                shelf.put([i for p, _ in kept for i in p], torch.cat([f for _, f in kept]))
                kept.clear()
            self.progress(start / len(rest))
            shelf.alive()
            yield part, features

    def encode(self, split: str, part: Sequence[Item], views: tuple[Views, int] | None) -> Tensor:
        """Features (n,D) of at most ENCODE_BATCH items, as the tower gives them now."""
        return self._encode(self.images(split, part, views))

    @torch.no_grad()
    def _encode(self, pixels: Tensor) -> Tensor:
        """(n,3,H,H) -> (n,D), n at most ENCODE_BATCH."""
        padded = torch.cat([pixels, pixels[:1].expand(ENCODE_BATCH - len(pixels), -1, -1, -1)])
        # A copy: a plugin's tower may give the same buffer for every batch.
        with feature_precision(self.precision, self.backbone.device):
            features = self.backbone.encode_image(padded)[: len(pixels)].float().clone()
        if not bool(torch.isfinite(features).all()):
            raise ValueError(
                f"backbone '{self.backbone.name}' gave features that are not finite numbers"
            )
        self.encoded_images += len(pixels)
        return features

    def text_shelves(self) -> list[Shelf]:
        """Where features of frozen texts are; new ones belong into the last."""
        every = [
            {**self._parts(by), "precision": "fp32", "texts": TEXT_REVISION} for by in self._codes()
        ]
        return [open_shelf(parts, self.folder) for parts in every]

    def _codes(self) -> list[tuple[str, ...]]:
        """By whose code features were encoded: the shelves that are read, the last of them also
        written. A plugin that this process has loaded may have changed anything, so that what is
        encoded here serves nobody who has not loaded it."""
        return list(dict.fromkeys([_codes(self.plugins), _codes(loaded_plugins())]))

    def _shelf(self, split: str, views: tuple[Views, int] | None, codes: tuple[str, ...]) -> Shelf:
        kind: object = "evaluation"
        revisions = {"revision": FEATURE_REVISION, "reader": READER_REVISION}
        if views is not None:
            kind = [views[0].scale, views[0].flip, views[1]]
            revisions["views"] = VIEW_REVISION
        parts = {**self._parts(codes), **revisions, "split": split, "view": kind}
        shelf = open_shelf(parts, self.folder)
        return self._shelves.setdefault((split, str(kind), codes), shelf)

    def _parts(self, codes: tuple[str, ...]) -> dict[str, Any]:
        return {
            **({"plugins": codes} if codes else {}),
            "backbone": self.backbone.fingerprint,
            "dataset": self.dataset_key,
            "precision": self.precision,
            "device": self.backbone.device.type,
            "versions": library_versions(),
        }


def _codes(plugins: Collection[Plugin]) -> tuple[str, ...]:
    return tuple(sorted({plugin.code_sha256 for plugin in plugins}))
