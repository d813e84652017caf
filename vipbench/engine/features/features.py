"""Images and their features, each encoded once, for one backbone and one dataset."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vipbench.api import ImageBackbone, Split, Views
from vipbench.engine.features.cache import Item, Shelf, open_shelf
from vipbench.engine.features.images import Drawn, ImageReader, Wish
from vipbench.engine.precision import feature_precision
from vipbench.plugins.files import Plugin, loaded_plugins
from vipbench.revisions import FEATURE_REVISION, READER_REVISION, TEXT_REVISION, VIEW_REVISION
from vipbench.runspec.values import FeaturePrecision

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
class Encoding:
    """The encoding of images in one process. show: called after each batch with the number of
    images and views that are encoded and of all. seconds: spent so far, waiting for other processes
    included."""

    show: Callable[[int, int], None] = lambda done, total: None
    seconds: float = 0.0


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
    # What is encoded, how far it is, and the time that it took; several may share one.
    encoding: Encoding = field(default_factory=Encoding)
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

    def plain(self, split: str, indices: Sequence[int], also: Iterable[int] = ()) -> Tensor:
        """Features (N,D) of the evaluation view. also: indices that later calls will ask for; they
        are encoded together with what is missing now."""
        store = self._plain.setdefault(split, {})
        wanted = [int(i) for i in indices]
        missing = [(i, 0) for i in dict.fromkeys(wanted) if i not in store]
        if missing:
            found = self._obtain(split, missing, None, [(i, 0) for i in also])
            store.update({index: features for (index, _), features in found.items()})
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
        if missing:
            found = self._obtain(split, missing, (views, seed))
            slots = [table.slots[i] for i, _ in found]
            table.table[slots, [v for _, v in found]] = torch.stack([*found.values()])
        for i in wanted:
            table.counts[i] = max(count, table.counts.get(i, 0))

    def view(self, split: str, indices: Sequence[int], views: Views, seed: int, v: int) -> Tensor:
        """Features (N,D) of training view `v`; prepared before."""
        table = self._table(split, views, seed)
        assert table.table is not None
        slots = [table.slots[int(i)] for i in indices]
        return table.table[slots, v]

    def images(self, split: str, items: Sequence[Item], views: Drawn) -> Tensor:
        """Preprocessed images (N,3,H,H) of `items` (index, view): the evaluation view where
        `views` is None, else training views of (views, seed)."""
        return self._reader.begin([Wish(split, views, *item) for item in items])()

    def cached(self, split: str, items: Sequence[Item], views: Drawn) -> int:
        """How many of `items` need not be encoded."""
        return len(self._found(split, items, views))

    def unshared(self, split: str, items: Sequence[Item], views: Drawn) -> list[Item]:
        """Those of `items` that no process without other plugins has encoded yet."""
        found = self._shelf(split, views, _codes(self.plugins)).get(items)
        return [item for item in items if item not in found]

    def fetch(self, wanted: Mapping[tuple[str, Drawn], Iterable[Item]]) -> None:
        """Encode what is not in the cache: of splits and kinds of views the items (index, view).
        All kinds share full batches, and each image is opened once."""
        started = time.perf_counter()
        try:
            self._fetch(wanted)
        finally:
            self.encoding.seconds += time.perf_counter() - started

    def _fetch(self, wanted: Mapping[tuple[str, Drawn], Iterable[Item]]) -> None:
        missing: dict[tuple[str, Drawn], list[Item]] = {}
        for (split, views), items in wanted.items():
            every = list(dict.fromkeys(items))
            found = self._found(split, every, views)
            if rest := [item for item in every if item not in found]:
                missing[split, views] = rest
        shelves = {kind: self._shelf(*kind, self._codes()[-1]) for kind in missing}
        with ExitStack() as held:
            # Another worker may be encoding them just now. Always in the same order, so that no two
            # workers wait for each other.
            for shelf in sorted(shelves.values(), key=lambda shelf: shelf.folder):
                held.enter_context(shelf.filling(lambda: self.progress(0.0)))
            wishes = []
            for (split, views), rest in missing.items():
                found = shelves[split, views].get(rest)
                wishes += [Wish(split, views, *item) for item in rest if item not in found]
            # Views of one image behind one another.
            order = {split: number for number, split in enumerate(self.splits)}
            wishes.sort(key=lambda wish: (order[wish.split], wish.index))
            if wishes:
                with self._reader.decoding(len(wishes)) as ahead:
                    self._fill(shelves, wishes, ahead)
        for shelf in shelves.values():
            self._report_problems(shelf)

    def _table(self, split: str, views: Views, seed: int) -> _ViewTable:
        return self._views.setdefault((split, views.scale, views.flip, seed), _ViewTable())

    def _obtain(
        self, split: str, items: Sequence[Item], views: Drawn, also: Sequence[Item] = ()
    ) -> dict[Item, Tensor]:
        """Features (D,) of `items`, on the backbone's device: from the cache, else encoded and kept
        there, together with `also`."""
        found = self._found(split, items, views)
        if len(found) < len(items):
            self.fetch({(split, views): [*items, *also]})
            rest = [item for item in items if item not in found]
            found |= self._found(split, rest, views)
        rows = torch.stack([found[item] for item in items]).to(self.backbone.device)
        return dict(zip(items, rows, strict=True))

    def _found(self, split: str, items: Sequence[Item], views: Drawn) -> dict[Item, Tensor]:
        """Those of `items` that are in the cache."""
        found: dict[Item, Tensor] = {}
        every, shared = self._codes(), _codes(self.plugins)
        rest = list(items)
        for codes in every if rest else ():
            shelf = self._shelf(split, views, codes)
            if codes == shared and len(every) > 1:
                shelf.refresh()  # another process may have encoded them for this one
            found |= shelf.get(rest)
            rest = [item for item in rest if item not in found]
            self._report_problems(shelf)
        return found

    def _report_problems(self, shelf: Shelf) -> None:
        for problem in shelf.problems:
            self.note(problem)
        shelf.problems.clear()

    def _fill(
        self, shelves: Mapping[tuple[str, Drawn], Shelf], wishes: Sequence[Wish], ahead: int
    ) -> None:
        """Encode all `wishes` and keep their features, each on the shelf of its kind."""
        kept: dict[tuple[str, Drawn], list[tuple[Item, Tensor]]] = {}
        starts = range(0, len(wishes), ENCODE_BATCH)
        parts = [wishes[i : i + ENCODE_BATCH] for i in starts]
        # While a batch is encoded, the next ones are decoded.
        begun = map(self._reader.begin, parts)
        ready = deque(islice(begun, ahead))
        for start, part in zip(starts, parts, strict=True):
            pixels = ready.popleft()()
            ready.extend(islice(begun, 1))
            for wish, row in zip(part, self._encode(pixels), strict=True):
                own = kept.setdefault((wish.split, wish.views), [])
                own.append(((wish.index, wish.view), row))
            last = start + ENCODE_BATCH >= len(wishes)
            block = 1 if last else BLOCK_BATCHES * ENCODE_BATCH
            full = [kind for kind, own in kept.items() if len(own) >= block]
            if full:
                self.before_keeping()
            for kind in full:
                own = kept.pop(kind)
                shelves[kind].put([item for item, _ in own], torch.stack([row for _, row in own]))
            done = start + len(part)
            self.encoding.show(done, len(wishes))
            for shelf in shelves.values():
                shelf.alive()

    def encode(self, split: str, part: Sequence[Item], views: Drawn) -> Tensor:
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
            raise ValueError(f"backbone '{self.backbone.name}' gave features that are not finite")
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

    def _shelf(self, split: str, views: Drawn, codes: tuple[str, ...]) -> Shelf:
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
