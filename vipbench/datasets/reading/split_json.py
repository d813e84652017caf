"""Split files as programs of the CoOp family write them.

{"train": [["rel/path.jpg", 0, "class name"], …], "val": […], "test": […]}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vipbench.api.dataset import SPLITS, DataError
from vipbench.datasets.reading.paths import listed
from vipbench.datasets.reading.rows import Row
from vipbench.datasets.reading.spelling import clean, skeleton

MAX_BYTES = 256 * 1024 * 1024


def read_split_json(path: Path) -> tuple[tuple[str, ...], dict[str, list[Row]]]:
    """Class names as the file spells them, by label, and the rows of each split.

    Raises DataError naming file and row.
    """
    document = _read(path)
    missing = [name for name in SPLITS if not isinstance(document.get(name), list)]
    if missing:
        raise DataError(
            f"split file '{path}' has no list for {listed(missing)}; expected "
            '{"train": [["rel/path.jpg", 0, "class name"], ...], "val": [...], "test": [...]}'
        )
    names: dict[int, tuple[str, str]] = {}  # label -> name, where
    rows: dict[str, list[Row]] = {name: [] for name in SPLITS}
    for split in SPLITS:
        for number, entry in enumerate(document[split]):
            where = f"split file '{path}', {split}[{number}]"
            relative, label, name = _entry(entry, where)
            known, first = names.setdefault(label, (name, where))
            if known != name:
                raise DataError(
                    f"{where}: label {label} is called '{name}', but '{known}' in {first}"
                )
            rows[split].append(Row(relative, label, where))
    _check_labels(path, names)
    return tuple(names[label][0] for label in sorted(names)), rows


def find_image_folder(path: Path, rows: dict[str, list[Row]]) -> Path:
    """Where the images of a split file are: beside it, or in a folder beside it."""
    first = next((row for name in SPLITS for row in rows[name]), None)
    if first is None:
        raise DataError(f"split file '{path}' lists no images")
    folders = sorted(entry for entry in path.parent.iterdir() if entry.is_dir())
    places = [path.parent, *folders]
    for place in places:
        if (place / first.path).is_file():
            return place
    raise DataError(
        f"{first.where}: image '{first.path}' is missing; looked for it in "
        f"{listed(map(str, places), 8)}; put the images beside the split file, or name their "
        f"folder: --images DIR, or `images: DIR` in a card '{path.with_suffix('.yaml').name}'"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"split file '{path}' is larger than {MAX_BYTES // 1024**2} MiB")
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"split file '{path}' cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"split file '{path}' is not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"split file '{path}' is not JSON: {error.msg} in line {error.lineno}, column "
            f"{error.colno}"
        ) from error
    except RecursionError:
        raise DataError(f"split file '{path}' is nested too deeply") from None
    except ValueError:  # Python's limit on the digits of an integer
        raise DataError(f"split file '{path}' contains a number with thousands of digits") from None
    return document if isinstance(document, dict) else {}


def _entry(entry: Any, where: str) -> tuple[str, int, str]:
    def right(path: Any, label: Any, name: Any) -> bool:
        texts = isinstance(path, str) and path and isinstance(name, str) and name.strip()
        return bool(texts) and type(label) is int and label >= 0

    if not isinstance(entry, Sequence) or len(entry) != 3 or not right(*entry):
        raise DataError(f'{where} is {entry!r}; expected ["rel/path.jpg", 0, "class name"]')
    return entry[0], entry[1], clean(entry[2])


def _check_labels(path: Path, names: dict[int, tuple[str, str]]) -> None:
    absent = sorted(set(range(max(names, default=-1) + 1)) - set(names))
    if absent:
        raise DataError(
            f"split file '{path}' has no image of label {absent[0]}, but one of label "
            f"{max(names)}; "
            "labels must be 0, 1, 2, ... without gaps"
        )
    by_name: dict[str, int] = {}
    for label, (name, where) in sorted(names.items()):
        shown = skeleton(name)
        if shown in by_name:
            raise DataError(
                f"{where}: the class '{name}' has the label {label}, and a class that looks like "
                f"it has the label {by_name[shown]}"
            )
        by_name[shown] = label
