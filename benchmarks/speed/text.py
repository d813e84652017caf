"""The text pass alone: packed and stacked against 77 tokens of every prompt; and how it grows."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.grid import make_backbone
from benchmarks.speed.plain import Plain
from vipbench.backbones.towers.clip import ClipBackbone

M = 4  # context vectors, as ViP has them


def alternately(times: int, *functions: Callable[[], Any]) -> list[float]:
    """Median seconds of each function, called in turn, so that a busy moment meets all of them;
    their first calls are not counted."""
    taken: list[list[float]] = [[] for _ in functions]
    for round_ in range(times + 1):
        for function, mine in zip(functions, taken, strict=True):
            start = time.perf_counter()
            function()
            if round_:
                mine.append(time.perf_counter() - start)
    return [statistics.median(mine) for mine in taken]


def packed_pass(backbone: ClipBackbone, texts: Sequence[str], cells: int) -> Callable[[], Any]:
    """Contexts -> features -> gradients of the contexts, of `cells` cells as one."""
    prompts = backbone.embed([("", f"{text}.") for text in texts])
    context = torch.randn(cells, 1, M, backbone.width, device=backbone.device) * 0.02
    context.requires_grad_()

    def step() -> None:
        context.grad = None
        backbone.encode_text(prompts, context).sum().backward()
        _wait(backbone)

    return step


def plain_pass(backbone: ClipBackbone, texts: Sequence[str]) -> Callable[[], Any]:
    """The same of one cell with every prompt in 77 tokens."""
    problem = Plain(backbone._model, [], [])
    embedded, end = problem.prompts([f"{text}." for text in texts], M)
    context = (torch.randn(M, backbone.width, device=backbone.device) * 0.02).requires_grad_()

    def step() -> None:
        context.grad = None
        problem.text(embedded, end, context).sum().backward()
        _wait(backbone)

    return step


def text_pass(backbone: ClipBackbone, texts: Sequence[str], times: int, peak: float) -> Any:
    """How much less the packed pass takes, a cell, alone and with 15 as one; and the share of the
    matrix products' peak (`peak`, 1e9 a second) that the stacked one reaches."""
    found: dict[str, Any] = {"texts": len(texts)}
    plain = plain_pass(backbone, texts)
    for cells in (1, 15):
        ours, theirs = alternately(times, packed_pass(backbone, texts, cells), plain)
        found[f"{cells} cells"] = {"packed_s": ours, "plain_s": theirs,
                                   "ratio": theirs * cells / ours}  # fmt: skip
    work = products(backbone, texts, 15)
    found["products_gflop"] = work
    found["share_of_peak"] = work / found["15 cells"]["packed_s"] / peak
    return found


def products(backbone: ClipBackbone, texts: Sequence[str], cells: int) -> float:
    """1e9 floating-point operations in the linear layers of a packed pass and its gradient: those
    that the result needs (rows that only fill up a sequence are not counted, nor attention)."""
    prompts = backbone.embed([("", f"{text}.") for text in texts])
    packing = backbone._packed(prompts, M, torch.Size()).packing
    filling = packing.is_token & (packing.tokens == 0) & (packing.positions == 0)
    rows = packing.rows - int(filling.sum())
    layers, width = backbone.text_layers, backbone.width
    # The last block needs keys and values of every row, all else of the end tokens.
    last = 2 * width**2 * (2 * rows + 10 * len(texts))
    return 2 * cells * (24 * width**2 * rows * (layers - 1) + last) / 1e9


def growth(
    backbone: ClipBackbone, texts: Sequence[str], times: int, most: int = 1000
) -> dict[str, Any]:
    """Seconds of a packed step with more classes (one text each, `most` at most), cells of two
    texts, texts of each of two classes."""
    found: dict[str, Any] = {"classes": {}, "cells": {}, "texts a class": {}}
    for n in (n for n in (2, 10, 100, 1000) if n <= most):
        few = max(1, times if n < 100 else times // 3)
        found["classes"][n] = alternately(few, packed_pass(backbone, many(texts, n), 1))[0]
    for n in (1, 4, 15, 60):
        found["cells"][n] = alternately(times, packed_pass(backbone, texts[:2], n))[0]
    for n in (1, 2, 4, 8, 16, 32):
        step = packed_pass(backbone, many(texts, 2 * n), 1)
        found["texts a class"][n] = alternately(times, step)[0]
    return found


def many(texts: Sequence[str], n: int) -> list[str]:
    """n texts that all differ."""
    return [f"{texts[i % len(texts)]} {i}" for i in range(n)]


def memory_of_many(arch: str, classes: int = 1000, each: int = 10) -> dict[str, float]:
    """A step over classes x each texts where 2 GB are free, in a process of its own: its peak
    memory in GB before (libraries and towers) and in the end, and seconds."""
    code = f"from benchmarks.speed.text import _alone; _alone({arch!r}, {classes * each})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _alone(arch: str, n: int) -> None:
    backbone = make_backbone(arch)
    # The engine's rule: a quarter of what is free.
    backbone.memory_budget = 2 << 28
    texts = many(["the rim of the mark is uneven and notched here and there"], n)
    packed_pass(backbone, texts[:8], 1)()
    before = _peak()
    start = time.perf_counter()
    packed_pass(backbone, texts, 1)()
    found = {"texts": n, "peak_before_gb": before, "peak_gb": _peak()}
    print(json.dumps({**found, "seconds": time.perf_counter() - start}))


def _peak() -> float:
    # Not getrusage's: a child begins with its parent's peak there.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1e6


def read_texts(path: Path) -> list[str]:
    """All symptoms of a file in ViP's form, {class: [symptom, ...]}."""
    return [text for row in json.loads(path.read_text(encoding="utf-8")).values() for text in row]


def _wait(backbone: ClipBackbone) -> None:
    if backbone.device.type == "cuda":
        torch.cuda.synchronize()
