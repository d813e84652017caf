"""What a table says of protocols other than few-shot. No torch here."""

from __future__ import annotations

from collections.abc import Iterable

from vipbench.results.parts import PLACE_FIELDS, place_of
from vipbench.results.record import Record
from vipbench.results.settings import protocol

SETTINGS = {
    "views": "training views",
    "sampler": "support sampler",
    "validation": "validation images per class",
    "selection": "model selection",
    "precision": "precision",
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
    told = [_SENTENCES[name] for name in found if name in _SENTENCES]
    # Few and all training images may stand beside each other, and say so themselves.
    if len(found) > 1 and found.keys() != {"few-shot", "full"}:
        places = "; ".join(f"{name} on {', '.join(own)}" for name, own in found.items())
        told.append(f"Several protocols: {places}")
    return told


def settings_told(records: Iterable[Record]) -> str:
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
