"""One generator per purpose, seeded by the cell; no global random state anywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch


def seed_of(*parts: object) -> int:
    """A 63-bit seed from what identifies a draw."""
    digest = hashlib.sha256()
    for part in parts:
        data = str(part).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(digest.digest()[:8], "little") >> 1


def cell_generator(*key: object) -> Callable[[str], torch.Generator]:
    """purpose -> a fresh CPU generator. key: the cell's shots and seed.

    Method and backbone are left out on purpose: variants of a method start from the same values
    and see the same batches, which makes paired comparisons sharper. The dataset is left out, so
    that no name, split or order of rows has a say.
    """

    def generator(purpose: str) -> torch.Generator:
        value = seed_of("vipbench-cell", *key, purpose)
        return torch.Generator().manual_seed(value)

    return generator
