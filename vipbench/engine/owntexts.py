"""The texts about a dataset's classes: its own, or those of the user's files in their place. No
torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from vipbench.errors import UsageError
from vipbench.spec import RunSpec
from vipbench.symptoms import load_descriptions, load_symptoms

Texts: TypeAlias = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class OwnTexts:
    """symptoms, descriptions: class name -> texts, None where there are none. images_seen: of each
    kind, how many labelled training images of a class, at most, it was written from. from_files:
    the kinds that a file gave."""

    symptoms: Texts | None
    descriptions: Texts | None
    images_seen: Mapping[str, int]
    notices: tuple[str, ...]
    from_files: tuple[str, ...] = ()


def own_texts(
    spec: RunSpec,
    source: str,
    name: str,
    class_names: Sequence[str],
    symptoms: Texts | None,
    descriptions: Texts | None,
) -> OwnTexts:
    """Symptoms and descriptions of the dataset `name`, asked for as `source`. A file that says it
    holds descriptions counts as such whichever flag gives it. Raises UsageError."""
    found: dict[str, Texts | None] = {"symptoms": symptoms, "descriptions": descriptions}
    seen: dict[str, int] = {}
    notices: list[str] = []
    from_file: dict[str, Path] = {}
    for flag, load in (("symptoms", load_symptoms), ("descriptions", load_descriptions)):
        files: Mapping[str, Path] = getattr(spec, flag)
        file = files.get(source, files.get(name, files.get("*")))
        if file is None:
            continue
        loaded = load(file, class_names)
        if loaded.kind in from_file:
            raise UsageError(
                f"two files give the {loaded.kind} of '{name}': {from_file[loaded.kind]} and {file}"
            )
        from_file[loaded.kind] = file
        found[loaded.kind] = loaded.symptoms
        if loaded.images_seen:
            seen[loaded.kind] = loaded.images_seen
        notices += [f"{loaded.kind} of '{name}': {warning}" for warning in loaded.warnings]
    return OwnTexts(
        found["symptoms"], found["descriptions"], seen, tuple(notices), tuple(from_file)
    )
