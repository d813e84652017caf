"""Groups (patients, lesions) that are in more than one split. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vipbench.api.dataset import Split


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
