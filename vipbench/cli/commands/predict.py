"""`vipbench predict`: classify images with a prompt file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vipbench import files
from vipbench.cli.exit_codes import OK
from vipbench.engine.explain.model import Model
from vipbench.engine.explain.prompt_files import unpack
from vipbench.errors import UsageError, printable
from vipbench.plugins.registry import load_registry
from vipbench.results.records.csv import csv_text
from vipbench.text import clean, columns, listed, plural

CAUTION = "Research only, not for clinical use."


def predict_command(
    prompt: Path,
    images: Sequence[Path],
    plugins_dir: Path | None,
    backbone: str | None = None,
    out: Path | None = None,
) -> int:
    """Print the class and softmax share of each image, or write all scores to `out` in the format
    of its suffix. A folder stands for all its image files. Raises UsageError, OSError."""
    if out is not None and out.suffix.lower() not in FORMATS:
        raise UsageError(f"--out {out}: expected a file name that ends in {' or '.join(FORMATS)}")
    model = Model(unpack(prompt, load_registry(plugins_dir), named=backbone), prompt.name)
    scores = model.scores(list(images))
    found, names = scores.to_numpy(np.float64), model.class_names
    order = np.argsort(-found, axis=1, kind="stable")
    if out is None:
        shares = np.exp(found - found.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        rows = [("image", "class", "softmax share", "runner-up")]
        for path, row, (first, second, *_) in zip(scores.index, shares, order, strict=True):
            rows.append((clean(str(path)), names[first], f"{row[first]:.3f}", names[second]))
        print("\n".join(columns(rows)))
    else:
        first = [names[i] for i in order[:, 0]]
        files.write(out, FORMATS[out.suffix.lower()](names, [*scores.index], first, found))
        counts = (f"{count} {name}" for name, count in Counter(first).most_common())
        print(f"{out}: {plural(len(first), 'image')}, predicted {clean(listed(counts))}")
    print(f"{CAUTION} These scores are not calibrated probabilities.")
    return OK


def _csv(names: Sequence[str], images: Sequence[str], first: Sequence[str], found: Any) -> str:
    rows: list[list[Any]] = [["image", "predicted", *names]]
    for image, name, row in zip(images, first, found, strict=True):
        rows.append([image, name, *(float(f"{score:.9g}") for score in row)])
    return printable(csv_text(rows))


def _json(names: Sequence[str], images: Sequence[str], first: Sequence[str], found: Any) -> str:
    rows = [
        {
            "image": image,
            "predicted": name,
            "scores": {n: float(f"{s:.9g}") for n, s in zip(names, row, strict=True)},
        }
        for image, name, row in zip(images, first, found, strict=True)
    ]
    return printable(json.dumps(rows, ensure_ascii=False, indent=1) + "\n")


FORMATS = {".csv": _csv, ".json": _json}
