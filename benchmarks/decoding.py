"""Whether images are decoded faster by processes than by threads, on this machine.

    python -m benchmarks.decoding                              # tiny-clip
    python -m benchmarks.decoding --backbone openclip:ViT-B-16/openai --device cuda --decoders 8

Draws a folder of photographs and has them decoded and preprocessed, alone and beside an encoder
that takes them, by threads and by processes in turn (`VIPBENCH_DECODERS`). Prints medians over the
pairs of the time of threads divided by that of processes: above 1, processes are faster. "start
included": from the first line, imports of the processes too, which run beside no decoding here;
"started": from the first batch on. Both ways must give the same features in every bit.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import deque
from itertools import islice
from pathlib import Path

# As the processes of a run have it; torch reads it when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from PIL import Image

from vipbench.api import ImageBackbone, Split
from vipbench.engine.features.features import ENCODE_BATCH, Encoding, Features
from vipbench.engine.features.images import ImageReader, Wish
from vipbench.engine.machine import threads
from vipbench.engine.planning.loading import load_backbone
from vipbench.plugins.registry import load_registry


def photographs(folder: Path, count: int, side: int) -> list[Path]:
    """JPEG files of `side` x 3/4 `side` pixels: clouds of colour with some grain."""
    rng, found = np.random.default_rng(0), []
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side * 3 // 4), Image.Resampling.BICUBIC))
        pixels = smooth + rng.normal(0, 6, smooth.shape)
        found.append(folder / f"{i}.jpg")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(found[-1], quality=90)
    return found


def alone(backbone: ImageBackbone, split: Split) -> tuple[float, float, torch.Tensor]:
    """Seconds until every batch is decoded, seconds from the first batch on, and the last batch."""
    mine = ImageReader(backbone, {"test": split})
    wishes = [Wish("test", None, i, 0) for i in range(len(split))]
    parts = [wishes[i : i + ENCODE_BATCH] for i in range(0, len(wishes), ENCODE_BATCH)]
    begin, first = time.perf_counter(), 0.0
    with mine.decoding(len(wishes)) as ahead:
        begun = map(mine.begin, parts)
        ready = deque(islice(begun, ahead))
        while ready:
            pixels = ready.popleft()()
            first = first or time.perf_counter()
            ready.extend(islice(begun, 1))
        end = time.perf_counter()
    return end - begin, end - first, pixels.cpu()


def beside(backbone: ImageBackbone, split: Split) -> tuple[float, float, torch.Tensor]:
    """The same with an encoder: seconds until every image is encoded, and the features."""
    first: list[float] = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["VIPBENCH_CACHE"] = cache
        encoding = Encoding(lambda done, total: first.append(time.perf_counter()))
        mine = Features(backbone, {"test": split}, "beside", encoding=encoding)
        begin = time.perf_counter()
        features = mine.plain("test", range(len(split)))
        end = time.perf_counter()
    return end - begin, end - first[0], features.cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description="Threads against processes that decode images.")
    parser.add_argument("--backbone", default="tiny-clip")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--decoders", type=int, default=2)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--side", type=int, default=600)
    parser.add_argument("--pairs", type=int, default=5)
    given = parser.parse_args()
    backbone = load_backbone(load_registry(), given.backbone).backbone
    backbone.to(given.device)
    torch.set_num_threads(threads(backbone))
    with tempfile.TemporaryDirectory() as folder:
        files = photographs(Path(folder), given.images, given.side)
        labels = np.zeros(len(files), dtype=np.int64)
        split = Split(files, labels, tuple(file.name for file in files))
        print(f"{'':<18}  start included    started")
        for name, measured in (("alone", alone), ("beside an encoder", beside)):
            ratios: list[list[float]] = [[], []]
            measured(backbone, split)  # files come into the system's cache
            for pair in range(given.pairs):
                taken: dict[int, tuple[float, float]] = {}
                results = []
                # Who goes first takes turns.
                for count in (0, given.decoders)[:: 1 if pair % 2 else -1]:
                    os.environ["VIPBENCH_DECODERS"] = str(count)
                    *taken[count], result = measured(backbone, split)  # type: ignore[assignment]
                    results.append(result)
                if not torch.equal(*results):
                    raise SystemExit("threads and processes do not give the same")
                for which in (0, 1):
                    ratios[which].append(taken[0][which] / taken[given.decoders][which])
            shown = [f"{statistics.median(r):.2f} ({min(r):.2f}-{max(r):.2f})" for r in ratios]
            print(f"{name:<18}  {'  '.join(shown)}")


if __name__ == "__main__":
    main()
