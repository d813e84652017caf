"""Published datasets as `<split>/<class>/<images>`, where the class folders are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vipbench.api.dataset import DataError
from vipbench.datasets.reading.paths import images_below, listed, stable_name, visible_folders
from vipbench.datasets.reading.rows import Row


def read_class_folders(
    base: Path, labels: Mapping[str, int], trusted: Sequence[Path] = ()
) -> dict[str, list[Row]]:
    """Rows of train, val and test below `base`; val is empty where there is no such folder.

    labels: folder name -> label; case and underscores do not matter, and a class may have
    several names. trusted: further folders that links may lead into. Raises DataError for folders
    that are none of these, and for missing ones.
    """
    rows: dict[str, list[Row]] = {"train": [], "val": [], "test": []}
    for split in rows:
        parent = base / split
        if not parent.is_dir():
            if split == "val":
                continue
            raise DataError(f"folder '{parent}' is missing; expected <images> in {listed(labels)}")
        found: dict[int, Path] = {}
        for folder in visible_folders(parent, base, trusted):
            label = labels.get(folder.name.lower().replace("_", " "))
            if label is None or label in found:
                raise DataError(
                    f"folder '{folder}' is not one of the expected {listed(labels)}, or a second "
                    f"one "
                    "of the same class"
                )
            found[label] = folder
        for name, label in labels.items():
            if label not in found:
                raise DataError(f"folder '{parent}' has no class folder '{name}'")
        for label, folder in sorted(found.items()):
            images, _ = images_below(folder, base, trusted)
            if not images:
                raise DataError(f"class folder '{folder}' holds no images")
            rows[split] += [Row(stable_name(i, base), label, f"folder '{folder}'") for i in images]
    return rows
