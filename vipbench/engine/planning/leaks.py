"""Leaks between a dataset's splits: groups, equal and similar images, symptoms naming a class."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vipbench import files
from vipbench.api.dataset import Split
from vipbench.engine.kept import cache_folder
from vipbench.symptoms.names import holds_name


def group_overlap(splits: Mapping[str, Split]) -> str | None:
    """What is wrong with the groups: which splits share how many, and of which images; or None.

    A model that is tested on a patient whom it was trained on is scored for knowing the patient.
    """
    held = {
        name: {group: i for i, group in reversed(list(enumerate(split.groups)))}
        for name, split in splits.items()
        if split.groups is not None
    }
    parts = []
    for one, other in combinations(held, 2):
        shared = sorted(held[one].keys() & held[other].keys())
        if shared:
            group = shared[0]
            first = splits[one].ids[held[one][group]]
            second = splits[other].ids[held[other][group]]
            parts.append(
                f"{one} and {other} share {len(shared)} group{'' if len(shared) == 1 else 's'}, "
                f"for instance '{group}' ('{first}' and '{second}')"
            )
    return "; ".join(parts) or None


@dataclass(frozen=True)
class EqualImages:
    """sentence: how many images are there more than once, and where; it names none. example: two
    of them, by their ids."""

    sentence: str
    example: str


def equal_images(splits: Mapping[str, Split], class_names: Sequence[str]) -> EqualImages | None:
    """Images of equal content in two splits, or twice in one; None where there are none.

    Files that were saved again are not equal: `audit` finds those. Raises ImageError.
    """
    places: dict[str, list[tuple[str, int]]] = {}
    for name, split in splits.items():
        for index, digest in enumerate(split.digests):
            places.setdefault(digest, []).append((name, index))
    counts: dict[tuple[str, ...], list[int]] = {}  # splits -> contents, of these with two classes
    example = ""
    found_two = False
    for copies in places.values():
        if len(copies) < 2:
            continue
        names = tuple(dict.fromkeys(name for name, _ in copies))
        labels = [int(splits[name].labels[i]) for name, i in copies]
        two = len(set(labels)) > 1
        count = counts.setdefault(names, [0, 0])
        count[0] += 1
        count[1] += two
        if not example or (two and not found_two):
            other = next((k for k, label in enumerate(labels) if label != labels[0]), 1)
            example = " and ".join(
                f"{copies[k][0]} '{splits[copies[k][0]].ids[copies[k][1]]}' "
                f"({class_names[labels[k]]})"
                for k in (0, other)
            )
            found_two = two
    if not counts:
        return None
    parts = []
    for names in sorted(counts, key=lambda names: (-len(names), names)):
        n, differ = counts[names]
        where = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
        times = "both in " if len(names) == 2 else "in " if len(names) > 2 else "more than once in "
        classes = f", {differ} of them under two classes" if differ else ""
        parts.append(f"{n} {'image is' if n == 1 else 'images are'} {times}{where}{classes}")
    return EqualImages("; ".join(parts), example)


Floats = npt.NDArray[np.float32]


# An image is looked at as SIDE x SIDE greys, of whose cosine transform the frequencies from 1 to
# HIGHEST count: they survive JPEG, resizing and, but for signs, flips.
SIDE, HIGHEST = 32, 10


# Cosine from which two images are the same one. On the 300 test images of synthderm the closest
# two different images reach 0.90, on the 468 of a chest X-ray set 0.89; copies saved with JPEG
# quality 30, or resized, 0.95.
NEAR = 0.92

# Of fewer images the usual spread of each frequency is not known.
FEWEST = 50


@dataclass(frozen=True)
class Pair:
    """Two images of different splits. similarity: 1.0 for the same pixels; flip: "", "h", "v" or
    "hv", how the second was flipped."""

    split: str
    id: str
    other_split: str
    other_id: str
    similarity: float
    flip: str = ""


@dataclass(frozen=True)
class Audit:
    """What was found. near: None where there were too few images to tell."""

    dataset: str
    fingerprint: str
    images: int
    exact: list[Pair] = field(default_factory=list)
    near: list[Pair] | None = None
    groups: str | None = None
    symptoms: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not (self.exact or self.near or self.groups or self.symptoms)

    def summary(self) -> str:
        """One line, for a run's notices."""
        counts = [
            (len(self.exact), "images in two splits"),
            (len(self.near or ()), "nearly equal images across splits"),
            (len(self.symptoms), "symptoms that name a class"),
        ]
        parts = [f"{n} {what}" for n, what in counts if n]
        return "; ".join([*parts, *(["groups that cross splits"] if self.groups else [])])


def audit(
    name: str,
    fingerprint: str,
    splits: Mapping[str, Split],
    class_names: Sequence[str] = (),
    symptoms: Sequence[Sequence[str]] | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> Audit:
    """Compare every two splits, image by image. symptoms: per class, in the order of the classes.

    Raises ImageError for an image that cannot be read.
    """
    digests: dict[str, list[str]] = {}
    waves: dict[str, Floats] = {}
    total, done = sum(map(len, splits.values())), 0
    for split_name, split in splits.items():
        digests[split_name], rows = [], []
        for index in range(len(split)):
            image = split.open(index)
            pixels = f"{image.size}".encode() + image.tobytes()
            digests[split_name].append(hashlib.sha256(pixels).hexdigest())
            rows.append(_waves(image))
            done += 1
            progress(done / total)
        waves[split_name] = np.stack(rows) if rows else np.zeros((0, SIDE, SIDE), np.float32)
    exact = [
        Pair(one, splits[one].ids[i], other, splits[other].ids[j], 1.0)
        for one, other in combinations(splits, 2)
        for i, j in _equal(digests[one], digests[other])
    ]
    near = None
    if total >= FEWEST:
        known = {(p.split, p.id, p.other_split, p.other_id) for p in exact}
        near = [
            pair
            for pair in _near(splits, waves)
            if (pair.split, pair.id, pair.other_split, pair.other_id) not in known
        ]
    named = [
        f"a symptom of '{owner}' names the class '{named}': {text}"
        for owner, texts in zip(class_names, symptoms or (), strict=False)
        for text in texts
        for named in class_names
        if holds_name(named, text)
    ]
    return Audit(name, fingerprint, total, exact, near, group_overlap(splits), named)


def _waves(image: Image.Image) -> Floats:
    """(SIDE,SIDE) cosine transform of the image's greys, shrunk."""
    from scipy.fft import dctn

    small = min(image.size) < SIDE
    how = Image.Resampling.BICUBIC if small else Image.Resampling.BOX
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), how), dtype=np.float32)
    found: Floats = dctn(grey, norm="ortho")
    return found


def _equal(one: Sequence[str], other: Sequence[str]) -> list[tuple[int, int]]:
    places: dict[str, list[int]] = {}
    for j, digest in enumerate(other):
        places.setdefault(digest, []).append(j)
    return [(i, j) for i, digest in enumerate(one) for j in places.get(digest, ())]


def _near(splits: Mapping[str, Split], waves: Mapping[str, Floats]) -> list[Pair]:
    rows, columns = np.meshgrid(range(SIDE), range(SIDE), indexing="ij")
    band = (np.hypot(rows, columns) >= 1) & (np.hypot(rows, columns) <= HIGHEST)
    every = np.concatenate([w[:, band] for w in waves.values()])
    mean, spread = every.mean(0), every.std(0)
    # A flip turns the signs of the odd frequencies along its axis.
    odd_h, odd_v = (-1.0) ** columns[band], (-1.0) ** rows[band]
    flips = {"": np.ones(band.sum()), "h": odd_h, "v": odd_v, "hv": odd_h * odd_v}

    def described(split: str, signs: Floats) -> Floats:
        values = (waves[split][:, band] * signs - mean) / (spread + 1e-3 * spread.mean())
        lengths = np.linalg.norm(values, axis=1, keepdims=True)
        return np.asarray(values / np.maximum(lengths, 1e-9), dtype=np.float32)

    found: dict[tuple[str, int, str, int], tuple[float, str]] = {}
    for one, other in combinations(splits, 2):
        here = described(one, np.ones(band.sum(), dtype=np.float32))
        for flip, signs in flips.items():
            there = described(other, signs.astype(np.float32))
            for start in range(0, len(here), 4096):
                likeness = here[start : start + 4096] @ there.T
                for i, j in np.argwhere(likeness >= NEAR).tolist():
                    key, value = (one, start + i, other, j), float(likeness[i, j])
                    if value > found.get(key, (0.0, ""))[0]:
                        found[key] = value, flip
    return [
        Pair(one, splits[one].ids[i], other, splits[other].ids[j], round(value, 4), flip)
        for (one, i, other, j), (value, flip) in found.items()
    ]


def _file(fingerprint: str) -> Path:
    return cache_folder() / "audits" / f"{fingerprint}.json"


def keep(found: Audit) -> None:
    """Remember an audit for later runs on the same content; without ids, which may be private."""
    kept = {**asdict(found), "summary": "" if found.clean else found.summary()}
    for name in ("exact", "near", "symptoms"):
        kept[name] = None if kept[name] is None else len(kept[name])
    kept["groups"] = bool(found.groups)
    file = _file(found.fingerprint)
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write(file, json.dumps(kept))


def kept_summary(fingerprint: str) -> str:
    """What an earlier audit of this content found, in a line; "" for nothing, or no audit."""
    try:
        kept: dict[str, Any] = json.loads(_file(fingerprint).read_text(encoding="utf-8"))
        return str(kept["summary"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
