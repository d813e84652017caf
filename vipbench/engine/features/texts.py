"""Features of frozen texts, kept on disk beside those of images for later runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vipbench.api import Backbone, Prompts
from vipbench.engine.features.cache import Item, Shelf
from vipbench.engine.features.features import Features
from vipbench.engine.guard import Guard

# Rows of one call that an item's second number has room for.
_ROWS = 1 << 22


class TextShelf:
    """Features of texts without learned context, from shelves of the cache, else encoded.

    Known by what the tower is given, token by token. What is encoded enters the last shelf at the
    next `keep`, once it is known that no plugin changed the tower meanwhile. encoded_texts: how
    many were not there.
    """

    def __init__(
        self,
        backbone: Backbone,
        shelves: Sequence[Shelf],
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.encoded_texts = 0
        # Raises where the tower is not as it was.
        self.compare: Callable[[str], None] = lambda who: None
        self._backbone, self._shelves, self._note = backbone, shelves, note
        self._waiting: list[tuple[Sequence[Item], Tensor]] = []

    def __call__(self, prompts: Prompts, remember: bool = True, who: str = "") -> Tensor:
        """Features (*N,D) of `prompts`. remember: whether new ones are to enter the cache. who:
        what must not have changed the tower when it encodes, for `compare`; empty: nothing."""
        items, shape = _items(prompts), prompts.shape
        found = {i: f for shelf in self._shelves for i, f in shelf.get(items).items()}
        self._report_problems()
        if items and len(found) == len(items):
            rows = torch.stack([found[item] for item in items])
            return rows.to(self._backbone.device).reshape(*shape, -1)
        if who:
            # It might change a tower for this call alone, which no check behind it would find.
            self.compare(who)
        with torch.no_grad():
            features = self._backbone.encode_text(prompts).detach().clone()
        self.encoded_texts += len(items)
        flat = features.reshape(len(items), -1)
        # Of other types the cache would give back other values.
        if remember and items and flat.dtype == torch.float32 and bool(flat.isfinite().all()):
            self._waiting.append((items, flat.clone()))
        return features

    def keep(self) -> None:
        """Write what was encoded since, in one block."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        items = [item for some, _ in waiting for item in some]
        self._shelves[-1].put(items, torch.cat([features for _, features in waiting]))
        self._report_problems()

    def _report_problems(self) -> None:
        for shelf in self._shelves:
            for problem in shelf.problems:
                self._note(problem)
            shelf.problems.clear()


def text_shelf(features: Features, guard: Guard) -> TextShelf | None:
    """That of a backbone with a text side. guard: each check of it that finds nothing keeps what
    was encoded before."""
    if not isinstance(features.backbone, Backbone):
        return None
    shelf = TextShelf(features.backbone, features.text_shelves(), features.note)
    guard.sound, shelf.compare = shelf.keep, guard.compare
    return shelf


def _items(prompts: Prompts) -> list[Item]:
    """One item of the shelf for each text, by all that a tower reads of the call."""
    digest = hashlib.sha256(str((tuple(prompts.shape), prompts.tokens.shape)).encode())
    for part in (prompts.tokens, prompts.lengths, prompts.gaps, prompts.mask):
        digest.update(b"-" if part is None else part.cpu().contiguous().numpy().tobytes())
    name = digest.digest()
    first = int.from_bytes(name[:8], "big") >> 1
    second = (int.from_bytes(name[8:13], "big") % (1 << 41)) * _ROWS
    return [(first, second + row) for row in range(min(prompts.lengths.numel(), _ROWS))]
