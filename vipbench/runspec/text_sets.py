"""Several files of symptoms, descriptions or templates in one run, each under a label.

`--symptoms ours=A.json --symptoms gpt=B.json` gives each method that reads symptoms a row per
label. A RunSpec has a labelled file under `key(label, dataset)`, any other under its dataset.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationInfo

from vipbench.errors import UsageError, unknown
from vipbench.runspec import values as words

# Between label and dataset: no name holds it.
_MARK = "\x1f"
# Between a row's label and those of its texts.
DOT = " · "
_RESERVED = ",=[]'\""


def key(label: str, dataset: str = "*") -> str:
    """What a RunSpec has a file under. label: "" for none."""
    return f"{label}{_MARK}{dataset}" if label else dataset


def split_key(key: str) -> tuple[str, str]:
    """Label ("" for none) and dataset."""
    label, mark, dataset = key.partition(_MARK)
    return (label, dataset) if mark else ("", key)


def labels(paths: Iterable[str]) -> list[str]:
    """The labels among keys."""
    return list(dict.fromkeys(label for label, _ in map(split_key, paths) if label))


def row_label(label: str, sets: Mapping[str, str]) -> str:
    """A row's label with those of its texts. sets: kind of texts -> label."""
    return DOT.join([label, *dict.fromkeys(sets.values())])


def texts_by_set(value: Any, info: ValidationInfo) -> dict[str, Path]:
    """A suite's `symptoms`, `descriptions` or `templates`: a file, or DATASET: FILE, LABEL: FILE
    and LABEL: {DATASET: FILE} lines. Raises UsageError."""
    if value is None or not isinstance(value, Mapping):
        return words.paths_by_dataset(value)
    known = words.dataset_keys(info.data.get("datasets", ()))
    found = {}
    for name, file in value.items():
        name = words.text(name, "a dataset or a label") if _MARK not in str(name) else name
        if name in known or _MARK in name:
            found[name] = words.required_path(file)
            continue
        files = file if isinstance(file, Mapping) else {"*": file}
        for dataset, one in files.items():
            found[key(_label(name, known), str(dataset))] = words.required_path(one)
    return found


def as_values(paths: Mapping[str, Path]) -> dict[str, Any]:
    """What `texts_by_set` reads back."""
    found: dict[str, Any] = {}
    for name, file in paths.items():
        label, dataset = split_key(name)
        own = found.setdefault(label, {}) if label else found
        own[dataset] = str(file)
    labelled = labels(paths)
    return {k: v["*"] if k in labelled and list(v) == ["*"] else v for k, v in found.items()}


def set_flags(flags: Iterable[str], datasets: Sequence[str], option: str) -> dict[str, Path]:
    """`[LABEL=][DATASET=]FILE` flags; what is no dataset of the run is a label."""
    found: dict[str, Path] = {}
    known = words.dataset_keys(datasets)
    for flag in flags:
        label, (dataset, file) = "", words.cut_path(flag, known)
        if not dataset and "=" in flag and not Path(flag).exists():
            given, _, rest = flag.partition("=")
            label, (dataset, file) = _label(given, known), words.cut_path(rest, known)
        name = key(label, dataset or "*")
        if name in found:
            whose = f"'{dataset}'" if dataset else "every dataset"
            under = f" under the label '{label}'" if label else ""
            raise UsageError(f"{option} is given twice for {whose}{under}")
        found[name] = words.required_path(file)
    return found


def _label(given: Any, known: Sequence[str]) -> str:
    """A label; a dataset's name that is spelled wrong is none."""
    label = words.text(given, "a label")
    if set(_RESERVED) & set(label) or DOT.strip() in label:
        raise UsageError(f"the label {words.show(label)} contains one of {' '.join(_RESERVED)} ·")
    if close := get_close_matches(label, [name for name in known if name != "*"], 1, 0.85):
        hint = "A label of texts must not resemble the name of a dataset."
        raise unknown("dataset", label, close, hint)
    return label
