"""Files of texts about classes, one for each dataset, as a flag or a suite gives them. No torch
here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vipbench import specparse as words
from vipbench.errors import UsageError, unknown


def text_files(value: Any) -> dict[str, Path]:
    """Dataset -> symptom file; a path alone is for every dataset."""
    if value is None:
        return {}
    if isinstance(value, str | Path):
        return {"*": words.required_path(value)}
    if not isinstance(value, Mapping):
        raise UsageError(f"expected 'DATASET: FILE' lines or one file, got {words.show(value)}")
    return {
        words.text(name, "a dataset"): words.required_path(file) for name, file in value.items()
    }


def dataset_keys(datasets: Iterable[str]) -> list[str]:
    """What may name a dataset in `symptoms`: `NAME:ARG` as given, the name of a file or folder
    ARG, by which tables call such a dataset, or "*" for all."""
    files = [Path(arg) for _, _, arg in (source.partition(":") for source in datasets) if arg]
    return list(dict.fromkeys([*datasets, "*", *(f.stem for f in files), *(f.name for f in files)]))


def text_file_flags(
    flags: Iterable[str], datasets: Sequence[str], option: str = "--symptoms"
) -> dict[str, Path]:
    """`[DATASET=]FILE` flags; a FILE alone is for every dataset."""
    found: dict[str, Path] = {}
    keys = dataset_keys(datasets)
    for flag in flags:
        # A dataset such as `npz:PATH` may hold a `=` itself.
        cuts = [i for i, char in enumerate(flag) if char == "=" and flag[:i] in keys]
        name, file = (flag[: cuts[-1]], flag[cuts[-1] + 1 :]) if cuts else ("*", flag)
        if not cuts and "=" in flag and not Path(flag).exists():
            given = flag.partition("=")[0]
            raise unknown("dataset", given, datasets, f"{option} takes [DATASET=]FILE.")
        if name in found:
            whose = "every dataset" if name == "*" else f"'{name}'"
            raise UsageError(f"{option} is given twice for {whose}")
        found[name] = words.required_path(file)
    return found
