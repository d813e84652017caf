"""Images through the tower: the share of the products' rate, and who decodes fast enough."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from benchmarks.decoding import beside, photographs
from benchmarks.gpu.worker import Bench, Line
from vipbench.api import Split
from vipbench.engine.features.decode_pool import VARIABLE
from vipbench.engine.features.features import ENCODE_BATCH
from vipbench.engine.machine import threads
from vipbench.engine.precision import feature_precision
from vipbench.runspec.values import FeaturePrecision

GOAL = 0.45  # of the measured bf16 products
DISTINCT = 256  # photographs; each stands for several images


def run(bench: Bench) -> Iterator[Line]:
    """Seconds of an image in each precision, and images a second from JPEG files."""
    count = 256 if bench.quick else 4096
    rates = bench.found("machine").get("products_tflops", {})
    work, fastest = operations(bench), 0.0
    for batch in (ENCODE_BATCH, 256):
        pixels = torch.randn(batch, 3, *[bench.backbone.image_size] * 2, device=bench.device)
        exact = bench.backbone.encode_image(pixels)
        for name in get_args(FeaturePrecision):
            with feature_precision(name, bench.device), torch.no_grad():
                found = bench.backbone.encode_image(pixels).float()
                times = max(1, count // batch)
                taken = bench.seconds(lambda x=pixels: bench.backbone.encode_image(x), times)
            rate = batch / taken
            apart = 1 - torch.nn.functional.cosine_similarity(found, exact).min().item()
            line: Line = {
                "what": "tower", "precision": name, "batch": batch, "images": times * batch,
                "images_per_s": rate, "tflops": rate * work / 1e12, "cosine_apart": apart,
            }  # fmt: skip
            if name in rates:
                line["share_of_products"] = rate * work / 1e12 / rates[name]
            if name == "bf16":
                fastest = max(fastest, line.get("share_of_products", 0.0))
            yield line
    torch.set_num_threads(threads(bench.backbone))
    decoders = (0, 2) if bench.quick else (0, 8, 16)
    fed: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        made = photographs(Path(folder), 64 if bench.quick else DISTINCT, 600)
        files = [made[i % len(made)] for i in range(count)]
        labels = np.zeros(count, dtype=np.int64)
        split = Split(files, labels, tuple(f"{i}" for i in range(count)))
        kept = {name: os.environ.get(name) for name in (VARIABLE, "VIPBENCH_CACHE")}
        try:
            for number in decoders:
                os.environ[VARIABLE] = str(number)
                whole, started, _ = beside(bench.backbone, split)
                who = f"{number} processes" if number else "threads"
                fed[who] = count / whole
                yield {"what": "fed", "decoders": number, "images": count,
                       "images_per_s": count / whole,
                       "images_per_s_once_started": count / started}  # fmt: skip
        finally:
            for name, value in kept.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
    line = {"what": "limit", "bf16_share_of_products": fastest, "goal": GOAL, "fed": fed,
            "fastest": max(fed, key=lambda who: fed[who])}  # fmt: skip
    if bench.cuda and not bench.quick:
        line["status"] = "ok" if fastest >= GOAL else "wrong"
    yield line


def operations(bench: Bench) -> float:
    """Floating-point operations of an image's pass through the vision transformer: products of
    its blocks, attention, patches and the last projection."""
    backbone = bench.backbone
    assert backbone.vision_width is not None
    width, layers = backbone.vision_width, backbone.vision_layers
    patch = int(backbone._config["vision_cfg"]["patch_size"])
    patches = (backbone.image_size // patch) ** 2
    rows = patches + 1
    blocks = layers * (24 * rows * width**2 + 4 * rows**2 * width)
    return float(blocks + 2 * patches * 3 * patch**2 * width + 2 * width * backbone.dim)
