"""`--profile published`: every row under its own paper's validation and selection, and said so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

from vipbench.plugins.registry import load_registry
from vipbench.results import Store

Cli = Callable[..., "CompletedProcess[str]"]

# What the papers say; a method that is not here sees no validation image, and its last step counts.
PUBLISHED = {
    "vip": ("full", "best_val"),
    "tip-adapter": ("full", "last"),
    "tip-adapter-f": ("full", "last"),
    "gda": ("full", "last"),
    "linear-probe": ("min(k,4)", "last"),
    "transclip-fs": ("min(k,4)", "last"),
    "lp++": ("min(k,4)", "best_val"),
    "cross-modal": ("min(k,4)", "best_val"),
}


def test_every_method_says_what_its_paper_does() -> None:
    methods = {
        k: v.target.published for k, v in load_registry().methods.items() if v.plugin.builtin
    }
    policies = {name: (p.validation, p.selection) for name, p in methods.items()}
    assert policies == dict.fromkeys(policies, ("none", "last")) | PUBLISHED


def test_each_row_has_its_paper_s_protocol_and_footnote(
    cli: Cli, toy: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = [
        *(
            "run",
            "--datasets",
            f"npz:{toy / 'toy.npz'}",
            "--backbones",
            "tiny-clip",
            "--shots",
            "2",
        ),
        *("--seeds", "1", "--views", "none", "--set", "coop.epochs=1", "--out", out),
    ]
    # The same cell of CoOp, in a comparison under one protocol; then under each paper's.
    matched = cli(*run, "--methods", "coop", "--validation", "none")
    assert matched.returncode == 0, matched.stderr
    assert "published" not in matched.stdout
    published = cli(*run, "--methods", "zero-shot,coop,linear-probe,gda", "--profile", "published")
    assert published.returncode == 0, published.stderr
    assert "4: 3 to do, 1 done" in published.stdout
    assert "validation  each paper" in published.stdout
    with Store(out, readonly=True) as store:
        records = store.records()
    for record in records:
        expected = PUBLISHED.get(record.cell.method_name, ("none", "last"))
        if record.cell.shots:
            assert (record.protocol.validation, record.protocol.selection) == expected
    notes = [n for n in (out / "table.md").read_text().splitlines() if "as in its paper" in n]
    for row, words in (
        ("coop[epochs=1]", "no validation"),
        ("linear-probe", "min(k,4)"),
        ("gda", "whole"),
    ):
        assert any(row in n.replace("\\", "") and words in n for n in notes), notes
    assert not any("zero-shot" in n for n in notes)
    assert any("(none)" in n for n in notes)
