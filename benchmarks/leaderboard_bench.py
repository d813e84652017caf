"""How large a leaderboard of 10,000 records is, and how fast it sorts in a headless Chromium.

    python benchmarks/leaderboard_bench.py [RECORDS]

Prints the time to build the page, its size, and per action the slowest of five times, measured in
the page from the press to the next painted frame.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.browser import Browser, find_chromium
from tests.results.samples import CLASSES, key_of, record_dict
from vipbench.results import Predictions, Record, Store, compute_metrics
from vipbench.results.leaderboard.entries import leaderboard
from vipbench.results.leaderboard.gather import Folders
from vipbench.results.leaderboard.page import render_page, write_page

SHOTS, SEEDS, IMAGES = (1, 2, 4, 8, 16), (1, 2, 3), 600
BACKBONES = ("tiny-clip", "openclip:ViT-B-16/openai", "openclip:ViT-L-14/laion2b")

TIMED = """new Promise((done) => {
  const start = performance.now();
  %s;
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
})"""
FILTER = """(() => { const s = document.getElementById("dataset");
  s.selectedIndex = (s.selectedIndex + 1) % s.options.length;
  document.getElementById("controls").dispatchEvent(new Event("input")); })()"""
PRESS = "document.querySelector('[data-sort=%s]').click()"
METRIC = """(() => { const s = document.getElementById("metric");
  s.selectedIndex = (s.selectedIndex + 1) % s.options.length;
  document.getElementById("controls").dispatchEvent(new Event("input")); })()"""


def records(count: int) -> Iterator[tuple[Record, Predictions | None]]:
    """`count` records of a grid, every row's first dataset with predictions."""
    rng = np.random.default_rng(0)
    labels = np.sort(rng.integers(0, 3, IMAGES))
    cells = [
        (f"dataset-{d}", backbone, f"method-{m}", shots, seed)
        for d in range(20)
        for m in range(1 + count // (20 * len(BACKBONES) * len(SHOTS) * len(SEEDS)))
        for backbone in BACKBONES
        for shots in SHOTS
        for seed in SEEDS
    ]
    for dataset, backbone, method, shots, seed in cells[:count]:
        scores = (rng.normal(size=(IMAGES, 3)) + np.eye(3)[labels]).astype(np.float32)
        value = record_dict(method, shots, seed, dataset=dataset, backbone=backbone)
        value["provenance"]["method"]["kind"] = ("TF", "TP", "AD", "MM")[len(method) % 4]
        value["data"]["test_counts"] = np.bincount(labels, minlength=3).tolist()
        value["metrics"] = compute_metrics(labels, scores, CLASSES)
        yield Record.of(value), None
    for d in range(20):
        value = record_dict("zero-shot", 0, 0, dataset=f"dataset-{d}", backbone=BACKBONES[0])
        scores = rng.normal(size=(IMAGES, 3)).astype(np.float32)
        value["key"] = key_of("zero-shot", d)
        value["data"]["test_counts"] = np.bincount(labels, minlength=3).tolist()
        value["metrics"] = compute_metrics(labels, scores, CLASSES)
        ids = [str(i) for i in range(IMAGES)]
        yield Record.of(value), Predictions(ids, None, labels, scores)


def main() -> None:
    """Build the page, open it, time it."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Store(folder / "out") as store:
            store.add_many(records(count))
        began = time.perf_counter()
        with Folders([folder / "out"]) as opened:
            entries = leaderboard(opened.gather())
        page = write_page(folder / "site", render_page(entries))
        seconds = time.perf_counter() - began
        size = page.stat().st_size / 1e6
        print(f"{count:,} records, {len(entries):,} rows: {seconds:.1f} s to build, {size:.2f} MB")
        program = find_chromium()
        if program is None:
            sys.exit("no Chromium was found; set CHROMIUM to its program")
        with Browser(program) as browser:
            browser.open(page)
            for what, action in (
                ("sort by value", PRESS % "value"),
                ("sort by method", PRESS % "method"),
                ("sort by rank", PRESS % "rank"),
                ("filter by dataset", FILTER),
                ("change the metric", METRIC),
            ):
                times = [browser.js(TIMED % action) for _ in range(5)]
                print(f"{what:<18} {max(times):6.1f} ms")
            if browser.problems:
                sys.exit(f"the page complained: {browser.problems}")


if __name__ == "__main__":
    main()
