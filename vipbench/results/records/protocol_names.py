"""Names of protocols, and of what a training is tested on, as tables show them.

`synthderm [base]` is a part of a dataset, or a dataset under another protocol than few-shot;
`a->b` is b, tested with what was trained on a; `a->b [shift]` the same with a's classes.
`study@fold-2` is what was tested on fold 2 of a dataset and trained on the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from vipbench.results.records.comparable import protocol
from vipbench.results.records.record import Record

BASE, NEW, HARMONIC, SHIFT = "base", "new", "H", "shift"


ARROW = "->"

# The dataset of a column that is the mean over the datasets.
AVERAGE = "average over datasets"

# What a table says of a dataset that is tested as a whole, beside parts of others.
ALL_CLASSES = "all classes"

# Fields of a record's protocol that say what was trained and tested on what.
PLACE_FIELDS = ("name", "part", "source", "source_given", "target", "classes")


def part_name(dataset: str, part: str) -> str:
    """`dataset [part]`."""
    return f"{dataset} [{part}]"


def target_name(source: str, target: str, shift: bool = False) -> str:
    """`source->target`, or `source->target [shift]`."""
    name = f"{source}{ARROW}{target}"
    return part_name(name, SHIFT) if shift else name


def fold_name(dataset: str, fold: str) -> str:
    """`dataset@fold-2`."""
    return f"{dataset}@{fold}"


_FOLD = re.compile(r"(.+)@fold-(\d+)( \[[^\]]*\])?")


def split_fold(name: str) -> tuple[str, int | None]:
    """`study@fold-2 [base]` -> `study [base]`, 2; without a fold it is None."""
    found = _FOLD.fullmatch(name)
    return (name, None) if found is None else (f"{found[1]}{found[3] or ''}", int(found[2]))


def split_part(name: str) -> tuple[str, str]:
    """`synthderm [base]` -> `synthderm`, `base`; without a part it is empty."""
    stem, bracket, rest = name.rpartition(" [")
    return (stem, rest[:-1]) if bracket and stem and rest.endswith("]") else (name, "")


def targets_name(target: str) -> str | None:
    """Of a target's name the name of the mean over all targets of its source; else None."""
    stem, part = split_part(target)
    source, arrow, _ = stem.partition(ARROW)
    if not arrow:
        return None
    name = f"average over targets of {source}"
    return part_name(name, part) if part else name


def derived(name: str | None) -> bool:
    """Whether a column's numbers are made of those of other columns."""
    return name is not None and (name.startswith("average over ") or name.endswith(" [H]"))


def place_of(record: Record) -> dict[str, Any]:
    """What a record says of its protocol beyond settings: PLACE_FIELDS; nothing of few-shot."""
    found = {name: getattr(record.protocol, name, None) for name in PLACE_FIELDS}
    return {name: value for name, value in found.items() if value is not None}


SETTINGS = {
    "views": "training views",
    "sampler": "support sampler",
    "sampler.revision": "revision of the support sampler",
    "validation": "validation images per class",
    "selection": "model selection",
    "precision": "precision",
    "feature_precision": "precision of image features",
}

_SENTENCES = {
    "base-to-new": "Base to new: trained on the first half of the classes, [base], and tested on "
    "these and on the others, [new], each among their own class names; [H] is the harmonic mean "
    "of the two means",
    "cross-dataset": "Cross-dataset: a->b is trained on a and tested on b, with b's class names",
    "domain-shift": "Domain shift: a->b [shift] is trained on a and tested on b, whose classes are "
    "those of a",
    "imbalanced": "[imbalanced]: support sets have shots times classes images, each class as many "
    "as its share of the training split, at least one",
    "validation-free": "[validation-free]: no validation image is used",
}


def protocol_name(record: Record) -> str:
    """The protocol under which a cell was run."""
    usual = "full" if record.cell.shots == "full" else "few-shot"
    return str(place_of(record).get("name", usual))


def protocol_sentences(records: Iterable[Record]) -> list[str]:
    """What each protocol is and, where there are several, which dataset is under which."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        found.setdefault(protocol_name(record), {})[record.cell.dataset] = None
    sentences = [_SENTENCES[name] for name in found if name in _SENTENCES]
    # Few and all training images may stand beside each other, and say so themselves.
    if len(found) > 1 and found.keys() != {"few-shot", "full"}:
        places = "; ".join(f"{name} on {', '.join(own)}" for name, own in found.items())
        sentences.append(f"Several protocols: {places}")
    return sentences


def settings_text(records: Iterable[Record]) -> str:
    """The settings that all protocols have, one after the other."""
    found: dict[str, list[str]] = {}
    for record in records:
        for name, value in protocol(record).items():
            values = found.setdefault(name, [])
            if name not in PLACE_FIELDS and str(value) not in values:
                values.append(str(value))
    # "image" is what shots are counted in unless the record says otherwise, and the shots' own
    # sentence says so.
    if found.get("shots_unit") == ["image"]:
        del found["shots_unit"]
    order = [name for name in SETTINGS if name in found]
    order += [name for name in found if name not in SETTINGS and found[name]]
    return ", ".join(
        f"{SETTINGS.get(name, name)} {found[name][0] if len(found[name]) == 1 else 'mixed'}"
        for name in order
    )
