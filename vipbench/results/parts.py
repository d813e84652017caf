"""Names of what one training is tested on, as tables show them in the dataset's place.

`synthderm [base]` is a part of a dataset, or a dataset under another protocol than few-shot;
`a->b` is b, tested with what was trained on a; `a->b [shift]` the same with a's classes.
No torch here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vipbench.results.record import Record

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
