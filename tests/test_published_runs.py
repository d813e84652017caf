"""README.md and docs/ say of a run what the run, and `vipbench compare` on it, say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.published_runs import BLOCK, BLOCKS, PAGES, RUNS, is_kept, keep, kept, written
from tests.conftest import Cli
from vipbench.datasets.npz import NpzDataset
from vipbench.engine.workers.messages import Event, Plan
from vipbench.engine.workers.session import Session
from vipbench.plugins.registry import load_registry
from vipbench.results.records.code import code
from vipbench.results.records.metrics import compute_metrics
from vipbench.revisions import PRESENT
from vipbench.runspec.run import RunSpec

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
        stored = compute_metrics(found.labels, found.scores, record.data.class_names)
        assert stored["accuracy"] == pytest.approx(record.metrics["accuracy"], abs=1e-12)


@pytest.mark.parametrize("name", [name for name in RUNS if is_kept(name)])
def test_a_kept_run_is_of_the_revisions_of_today(name: str) -> None:
    """A raised revision says that numbers moved: the published ones are then made anew."""
    registry = load_registry()
    backbone = registry.backbone("tiny-clip")[0].fingerprint
    loaders = {"synthderm": registry.dataset("synthderm")[0].revision}
    for record in kept(name).cells.records.values():
        parts = code(record)
        known = parts.keys() & PRESENT.keys()
        assert {k: parts[k] for k in known} == {k: PRESENT[k] for k in known}, record.cell
        assert parts["method.revision"] == (
            registry.methods[record.cell.method_name].target.revision
        )
        assert parts["loader.revision"] == loaders.get(record.cell.dataset, NpzDataset.revision)
        assert record.provenance["key_parts"]["backbone"] == backbone
        assert {"reader.revision", "features.revision", "engine.revision"} <= parts.keys()


def test_the_demo_of_today_has_the_keys_of_the_kept_one() -> None:
    """Its records answer for the demo: nothing that enters a key has moved."""
    events: list[Event] = []
    demo = RunSpec.from_yaml(REPO / "vipbench" / "suites" / "demo.yaml")
    Session(events.append).plan(demo.merge({"device": "cpu"}))
    [plan] = [event for event in events if isinstance(event, Plan)]
    records = kept("demo").cells.records
    assert {cell.slot: cell.key for cell in plan.cells} == {r.slot: r.key for r in records.values()}


def test_a_kept_run_compares_as_its_folder_does(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    done = cli(
        *("run", "--methods", "symptoms-mean,linear-probe,ncm", "--shots", "1,2", "--out", folder),
        *("--datasets", "synthderm", "--backbones", "tiny-clip", "--views", "none"),
    )
    assert done.returncode == 0, done.stderr
    stored = json.loads(
        cli("compare", "linear-probe", "symptoms-mean,ncm", folder, "--format", "json").stdout
    )
    keep(folder, "small", tmp_path)
    run = kept("small", tmp_path)
    shown = cli("table", folder, "--format", "github", "--metric", "accuracy").stdout
    assert run.table().rstrip() == shown.rstrip()
    mine = run.claims("linear-probe", "symptoms-mean", "ncm")
    assert [(c.b, c.shots, c.mean_a, c.p_corrected) for c in mine] == [
        (c["b"], c["shots"], c["mean_a"], c["p_corrected"]) for c in stored["claims"]
    ]
