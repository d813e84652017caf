"""How far training in bf16 changes what is predicted: the same cells in fp32 and in bf16.

    python -m benchmarks.bf16_agreement                      # the demo
    python -m benchmarks.bf16_agreement npz:FILE --views none

Prints for each method, over all shots and seeds, the mean share of test images that get another
class (the median and the most too: a cell near the border of two minima may end in the other), and
the mean change of accuracy. Features and final scores are in fp32 either way.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from vipbench.engine.workers import driver
from vipbench.results import Predictions, Store
from vipbench.runspec.run import RunSpec

METHODS = ["coop", "cocoop", "kgcoop", "vip"]


def main() -> None:
    """Run both, compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("datasets", nargs="*", default=["synthderm"])
    parser.add_argument("--backbone", default="tiny-clip")
    parser.add_argument("--shots", default="1,2,4,8,16")
    parser.add_argument("--views", default="8")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scores = {name: run(args, Path(folder) / name, name) for name in ("fp32", "bf16")}
    rows = []
    for cell, exact in scores["fp32"].items():
        half = scores["bf16"][cell]
        a, b, truth = exact.scores.argmax(1), half.scores.argmax(1), exact.labels
        rows.append((*cell[:2], np.mean(a != b), np.mean(b == truth) - np.mean(a == truth)))
    frame = pd.DataFrame(rows, columns=["dataset", "method", "flips", "accuracy"])
    groups = frame.groupby(["dataset", "method"])
    mean = groups.mean() * 100
    mean.insert(1, "median flips", groups["flips"].median() * 100)
    mean.insert(2, "most flips", groups["flips"].max() * 100)
    mean["largest change"] = groups["accuracy"].apply(lambda x: 100 * x.abs().max())
    print(mean.round(2).to_string())


def run(
    args: argparse.Namespace, out: Path, precision: str
) -> dict[tuple[str, str, object, int], Predictions]:
    """(dataset, row, shots, seed) -> predictions on the test images."""
    spec = RunSpec.parse(
        {
            "methods": METHODS,
            "datasets": args.datasets,
            "backbones": [args.backbone],
            "shots": args.shots,
            "seeds": "1,2,3",
            "views": args.views,
            "precision": precision,
            "out": out,
        }
    )
    driver.run(spec)
    found = {}
    with Store(out, readonly=True) as store:
        for record in store.records():
            if not record.ok:
                raise SystemExit(f"{record.cell}: {record.error}")
            kept = store.predictions(record.key)
            assert kept is not None
            cell = record.cell
            found[cell.dataset, cell.method, cell.shots, cell.seed] = kept
    return found


if __name__ == "__main__":
    main()
