"""Trackers see every cell once, cost no cell, and are refused before a run where they cannot be."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import vipbench

DIARY = """
import os, vipbench

def note(folder, text):
    with (folder / "diary.txt").open("a") as file:
        file.write(f"{os.getpid()} {text}\\n")

@vipbench.hookimpl
def on_run_start(run):
    note(run.folder, f"start {run.settings['methods'][0]['name']}")

@vipbench.hookimpl
def on_cell_done(run, cell):
    note(run.folder, f"{cell.title}: {cell.metrics['accuracy']} {len(cell.epochs)}")

@vipbench.hookimpl
def on_run_end(run):
    note(run.folder, "end")
"""
BROKEN = """
import vipbench

@vipbench.hookimpl
def on_cell_done(run, cell):
    raise RuntimeError("the server is away")
"""
COOP = "coop[epochs=2]"


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, vipbench.Results, str]:
    """A run whose first cell was done before anything was tracked; and what was printed."""
    folder = tmp_path_factory.mktemp("tracked")
    (folder / "plugins").mkdir()
    (folder / "plugins" / "diary.py").write_text(DIARY)
    (folder / "plugins" / "broken.py").write_text(BROKEN)
    run = {"datasets": "synthderm", "backbones": "tiny-clip", "shots": 1, "seeds": 1, "views": 1}
    vipbench.run(COOP, out=folder / "out", quiet=True, **run)
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vipbench.engine.progress.Quiet.line", lambda self, text: lines.append(text))
        results = vipbench.run(
            [COOP, "zero-shot"],
            out=folder / "out",
            plugins_dir=folder / "plugins",
            track=["tensorboard", "diary", "broken"],
            quiet=True,
            **run,
        )
    return folder / "out", results, "\n".join(lines)


def test_tensorboard_gets_curves_and_metrics_of_every_cell(tracked) -> None:
    out, results, _ = tracked
    found = {}
    for folder in (out / "tracking" / "tensorboard").iterdir():
        events = EventAccumulator(str(folder)).Reload()
        found[folder.name] = {
            tag: [(e.step, e.value) for e in events.Scalars(tag)]
            for tag in events.Tags()["scalars"]
        }
    records = {record.cell.method: record for record in _records(out)}
    assert len(found) == len(records) == 2
    for method, record in records.items():
        (tags,) = (found[name] for name in found if name.startswith(method[:4]))
        assert tags["test/accuracy"] == [(0, pytest.approx(record.metrics["accuracy"]))]
        for name, value in record.metrics["sensitivity"].items():
            assert tags[f"test/sensitivity/{name}"][0][1] == pytest.approx(value)
        losses = [(e["epoch"] + 1, pytest.approx(e["loss"])) for e in record.history]
        assert tags.get("epoch/loss", []) == losses
        for name in ("support_accuracy", "val_accuracy"):
            assert len(tags.get(f"epoch/{name}", [])) == len(losses)
    assert len(records[COOP].history) == 2
    assert not results.failed


def test_a_plugins_hooks_run_once_for_each_cell_in_a_process_of_their_own(tracked) -> None:
    out, _, _ = tracked
    lines = (out / "tracking" / "diary" / "diary.txt").read_text().splitlines()
    pids, texts = zip(*(line.split(" ", 1) for line in lines), strict=True)
    assert len(set(pids)) == 1
    assert str(os.getpid()) not in pids
    assert texts[0] == "start coop"
    assert texts[-1] == "end"
    accuracy = {record.cell.method: record.metrics["accuracy"] for record in _records(out)}
    assert set(texts[1:-1]) == {
        f"{COOP} on synthderm with tiny-clip, 1 shot, seed 1: {accuracy[COOP]} 2",
        f"zero-shot on synthderm with tiny-clip, zero-shot: {accuracy['zero-shot']} 0",
    }


def test_one_that_fails_costs_a_note(tracked) -> None:
    _, results, printed = tracked
    assert len(results.frame()) == 2
    (line,) = [line for line in printed.splitlines() if "broken" in line]
    assert "the server is away" in line


def test_a_second_run_writes_nothing_twice(tracked) -> None:
    out, _, _ = tracked
    folder = out / "tracking" / "tensorboard"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    run = {"datasets": "synthderm", "backbones": "tiny-clip", "shots": 1, "seeds": 1, "views": 1}
    vipbench.run([COOP, "zero-shot"], out=out, track="tensorboard", quiet=True, **run)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("tensorbord", ["'tensorboard'"]),
        ("proto_clip", ["proto_clip", "on_cell_done"]),
        *[
            (name, [name, f"vipbench[{name}]"])
            for name in ("mlflow", "wandb")
            if importlib.util.find_spec(name) is None
        ],
    ],
)
def test_what_cannot_track_is_refused_before_the_run(
    name: str, parts: list[str], tmp_path: Path
) -> None:
    plugins = Path(__file__).resolve().parents[2] / "plugins"
    with pytest.raises(vipbench.UsageError) as caught:
        vipbench.run("zero-shot", out=tmp_path / "out", track=name, plugins_dir=plugins, quiet=True)
    assert all(part in str(caught.value) for part in parts)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_the_other_trackers(name: str, tracked, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name)
    out, _, _ = tracked
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run = {"datasets": "synthderm", "backbones": "tiny-clip", "shots": 1, "seeds": 1, "views": 1}
    vipbench.run([COOP, "zero-shot"], out=out, track=name, quiet=True, **run)
    folder = out / "tracking" / name
    cells = [path for path in folder.iterdir() if (path / "written.json").is_file()]
    assert len(cells) == 2
    assert all(json.loads((c / "written.json").read_text())["result"] == "ok" for c in cells)
    if name == "wandb":
        assert all(list(cell.glob("wandb/offline-run-*/*.wandb")) for cell in cells)
        return
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("vipbench").experiment_id
    runs = {r.data.params["method"]: r for r in client.search_runs([experiment])}
    assert runs.keys() == {COOP, "zero-shot"}
    losses = client.get_metric_history(runs[COOP].info.run_id, "epoch/loss")
    assert [point.step for point in losses] == [1, 2]


def _records(out: Path):
    from vipbench.results.store.store import Store

    with Store(out, readonly=True) as store:
        return store.records()
