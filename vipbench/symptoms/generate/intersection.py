"""Stage (c): features of the text stage that the image stage supports, matched by meaning.

Similarities come from the caller.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float64]
THRESHOLD = 0.25
LEAST = 2


@dataclass(frozen=True)
class Judged:
    """A feature, whether it is kept, and why."""

    text: str
    kept: bool
    reason: str


def by_similarity(
    text: Mapping[str, Sequence[str]],
    image: Mapping[str, Sequence[str]],
    embed: Callable[[Sequence[str]], Vectors],
    threshold: float,
) -> dict[str, list[Judged]]:
    """Per class its text features, kept where an image feature of the class is near.

    Near: the cosine of the two texts' features reaches `threshold`, after the mean feature over
    all texts is taken away, since all texts of a CLIP model lie close together. Where fewer than
    two would be left the nearest two stay, and the reason says so.
    """
    texts = list(dict.fromkeys(t for part in (text, image) for row in part.values() for t in row))
    vectors = embed(texts)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors - vectors.mean(0)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    place = {t: i for i, t in enumerate(texts)}
    found = {}
    for name, features in text.items():
        seen = list(image[name])
        if not seen or not features:
            found[name] = [Judged(f, False, "no image feature to support it") for f in features]
            continue
        cosines = vectors[[place[f] for f in features]] @ vectors[[place[s] for s in seen]].T
        best, which = cosines.max(1), cosines.argmax(1)
        order = np.argsort(-best, kind="stable")
        rescued = set(order[:LEAST].tolist()) if (best >= threshold).sum() < LEAST else set()
        rows = []
        for i, feature in enumerate(features):
            near = f"nearest image feature '{seen[which[i]]}', similarity {best[i]:.2f}"
            if best[i] >= threshold:
                rows.append(Judged(feature, True, f"{near}, at least {threshold:g}"))
            elif i in rescued:
                rows.append(
                    Judged(
                        feature,
                        True,
                        f"{near}, below {threshold:g}; kept as one of the "
                        f"{LEAST} nearest, or fewer than {LEAST} would be left",
                    )
                )
            else:
                rows.append(Judged(feature, False, f"{near}, below {threshold:g}"))
        found[name] = rows
    return found


def numbers(reply: str, count: int) -> list[int]:
    """The numbers 1..count at the beginnings of a reply's lines, as indices from 0."""
    found = re.findall(r"^\W*(\d{1,4})\b", reply, re.MULTILINE)
    return sorted({int(n) - 1 for n in found if 1 <= int(n) <= count})


def by_model(features: Sequence[str], reply: str) -> list[Judged]:
    """Features kept where the model's reply names their number."""
    named = set(numbers(reply, len(features)))
    return [
        Judged(f, i in named, f"the model {'names' if i in named else 'does not name'} it")
        for i, f in enumerate(features)
    ]
