"""Features of the same images under several backbones, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from vipbench.api import Views
from vipbench.engine.features.features import Features


class SideBySide(Features):
    """Features (N, D1 + D2 + …) of one dataset: those of each of `parts`, in their order. Each part
    keeps its own in memory and in the cache. Images are those of the first part's backbone."""

    def __init__(self, parts: Sequence[Features]) -> None:
        first = parts[0]
        super().__init__(
            first.backbone,
            first.splits,
            first.dataset_key,
            first.progress,
            first.note,
            encoding=first.encoding,
        )
        self.parts = tuple(parts)

    def plain(self, split: str, indices: Sequence[int], also: Iterable[int] = ()) -> Tensor:
        """See Features."""
        return torch.cat([part.plain(split, indices, also) for part in self.parts], dim=-1)

    def prepare_views(
        self, split: str, indices: Sequence[int], views: Views, seed: int, count: int
    ) -> None:
        """See Features."""
        for part in self.parts:
            part.prepare_views(split, indices, views, seed, count)

    def view(self, split: str, indices: Sequence[int], views: Views, seed: int, v: int) -> Tensor:
        """See Features."""
        found = [part.view(split, indices, views, seed, v) for part in self.parts]
        return torch.cat(found, dim=-1)
