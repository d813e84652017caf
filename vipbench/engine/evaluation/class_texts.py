"""The texts of the first class that a method gives to the text tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vipbench.api import Texts

# So many texts of a class are shown.
MOST = 3
# Stands for learned context vectors.
LEARNED = "[learned]"


class ClassTexts:
    """Collects what a Task is asked to encode. As the task's callback, it takes texts and how many
    learned vectors each takes in."""

    def __init__(self, n_classes: int) -> None:
        self._n_classes = n_classes
        self._found: dict[str, None] = {}

    def __call__(self, texts: Texts, context: int = 0) -> None:
        """Texts that are not listed by class, such as anchors, are left out."""
        if isinstance(texts, list) and len(texts) == self._n_classes:
            self._found.update(dict.fromkeys(_flat(texts[0], context)))

    def shown(self) -> tuple[str, ...]:
        """The first texts of the first class, and how many more there are."""
        every = list(self._found)
        more = len(every) - MOST
        return (*every[:MOST], *([f"{more} more"] if more > 0 else []))


def _flat(texts: Any, context: int) -> Sequence[str]:
    if isinstance(texts, list):
        return [text for some in texts for text in _flat(some, context)]
    # A text of several pieces takes the context into its gaps; one piece has it in front.
    pieces = texts if isinstance(texts, tuple) else ("", texts)
    joint = f" {LEARNED} " if context else " "
    return [" ".join(joint.join(pieces).split())]
