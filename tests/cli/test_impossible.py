"""Pairs that cannot be: named with their reason before anything runs, one line each in a run."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

from tests.backbones.hub_models import save_clip

Cli = Callable[..., "CompletedProcess[str]"]


def test_impossible_pairs_are_skipped_and_the_rest_is_run(
    cli: Cli, toy: Path, tmp_path: Path
) -> None:
    save_clip(tmp_path / "short", max_position_embeddings=12)
    done = cli(
        "run", "--methods", "zero-shot,coop,maple,vip,biomedcoop,ncm,supervised",
        "--datasets", f"npz:{toy / 'toy.npz'}",
        "--backbones", f"timm:test_resnet+random,transformers:{tmp_path / 'short'}",
        "--shots", "1", "--seeds", "1", "--views", "none", "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("impossible: ")]
    resnet = "'timm:test_resnet+random'"
    reasons = {
        f"{name} on toy with timm:test_resnet+random": f"'{name}' needs a text tower and {resnet}"
        for name in ("zero-shot", "coop", "maple", "vip", "biomedcoop")
    }
    reasons["supervised on toy with timm:test_resnet+random"] = "has no pretrained weights"
    reasons |= {
        "vip on toy with transformers:clip@": "needs symptoms and 'toy' has none; give --symptoms",
        "biomedcoop on toy with transformers:clip@": "'toy' has none; give --descriptions toy=FILE",
        "coop on toy with transformers:clip@": "16 context vectors; the tower of",
    }
    assert len(lines) == len(reasons)
    for start, reason in reasons.items():
        [line] = [one for one in lines if one.startswith(f"impossible: {start}")]
        assert reason in line
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    ran = {(row["backbone"].partition("@")[0], row["method"]) for row in rows}
    assert ran == {
        ("timm:test_resnet+random", "ncm"),
        *(("transformers:clip", name) for name in ("zero-shot", "maple", "ncm", "supervised")),
    }
    table = (tmp_path / "out" / "table.md").read_text()
    assert re.search("coop .*cannot", table)
