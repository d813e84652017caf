"""Augmented views of every epoch, encoded for real: what `benchmarks.speed` adds up.

    python -m benchmarks.speed.views                  # ViT-B/16, 50 epochs: 4,800 views
    python -m benchmarks.speed.views --arch ViT-B-32 --epochs 4

Cuts, resizes and encodes the views that the whole grid of CoOp, CoCoOp and ViP shares (32 training
images under each of three seeds, a view an epoch), and prints seconds, and how many times as long
a view takes as an image of the evaluation view.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time

os.environ.setdefault("VIPBENCH_CACHE", tempfile.mkdtemp(prefix="vipbench-views-"))

import torch

from benchmarks.speed.grid import EPOCHS, SEEDS, TEST, Grid, make_backbone
from vipbench.api import Views

TRAIN = 32


def main() -> None:
    """Encode both, compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", default="ViT-B-16")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    args = parser.parse_args()
    backbone = make_backbone(args.arch)
    backbone.to("cuda" if torch.cuda.is_available() else "cpu")
    grid = Grid(backbone, args.epochs)
    image = grid.encode() / (TRAIN + TEST)
    start = time.perf_counter()
    for seed in SEEDS:
        grid.features.prepare_views("train", range(TRAIN), Views(), seed, args.epochs)
    spent = time.perf_counter() - start
    count = len(SEEDS) * TRAIN * args.epochs
    assert grid.features.encoded_images == TRAIN + TEST + count
    print(f"{count} views in {spent:.1f} s, {spent / count / image:.2f} times as long each as an "
          f"image of the evaluation view ({image:.4f} s)")  # fmt: skip


if __name__ == "__main__":
    main()
