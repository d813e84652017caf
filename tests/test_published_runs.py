"""README.md and docs/ say of a run what the run, and `vipbench compare` on it, say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.published_runs import BLOCK, BLOCKS, PAGES, RUNS, is_kept, keep, kept, written
from tests.conftest import Cli
from vipbench.results.records.metrics import compute_metrics

REPO = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_what_the_kept_runs_make_it(page: str) -> None:
    text = (REPO / page).read_text(encoding="utf-8")
    assert BLOCK.search(text)
    assert text == written(text), "run `python -m benchmarks.published_runs`"


def test_every_block_stands_on_a_page_and_is_of_a_known_run() -> None:
    pages = "".join((REPO / page).read_text(encoding="utf-8") for page in PAGES)
    assert [m[2] for m in BLOCK.finditer(pages)] == list(BLOCKS)
    assert {name for name, _ in BLOCKS.values()} <= RUNS.keys()


@pytest.mark.parametrize("name", [name for name in RUNS if is_kept(name)])
def test_accuracies_of_a_kept_run_follow_from_its_predictions(name: str) -> None:
    run = kept(name)
    done = run.cells.done()
    assert len(done) == len(run.cells.possible())
    for _, record in done:
        found = run.load(record.key)
        told = compute_metrics(found.labels, found.scores, record.data.class_names)
        assert told["accuracy"] == pytest.approx(record.metrics["accuracy"], abs=1e-12)


def test_a_kept_run_compares_as_its_folder_does(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    done = cli(
        *("run", "--methods", "symptoms-mean,linear-probe,ncm", "--shots", "1,2", "--out", folder),
        *("--datasets", "synthderm", "--backbones", "tiny-clip", "--views", "none"),
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(
        cli("compare", "linear-probe", "symptoms-mean,ncm", folder, "--format", "json").stdout
    )
    keep(folder, "small", tmp_path)
    run = kept("small", tmp_path)
    shown = cli("table", folder, "--format", "github", "--metric", "accuracy").stdout
    assert run.table().rstrip() == shown.rstrip()
    mine = run.claims("linear-probe", "symptoms-mean", "ncm")
    assert [(c.b, c.shots, c.mean_a, c.p_corrected) for c in mine] == [
        (c["b"], c["shots"], c["mean_a"], c["p_corrected"]) for c in told["claims"]
    ]
