"""Folds by patient: from the table that is written to the table of results."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vipbench
from tests.conftest import REPO
from vipbench.engine.planning import protocols
from vipbench.engine.planning.loading import load_dataset
from vipbench.engine.planning.protocols import arrange, draw
from vipbench.errors import UsageError
from vipbench.plugins.registry import load_registry
from vipbench.results import Store, compute_metrics
from vipbench.runspec.run import RunSpec

GROUPS, EACH, FOLDS, SEEDS = 20, 3, 5, (1, 2)


def call(*args: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "VIPBENCH_CACHE": str(cwd / "cache"), "VIPBENCH_CONFIG": str(cwd / "c")}
    env["PYTHONPATH"] = str(REPO)
    command = [sys.executable, "-m", "vipbench", *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `study.csv` (60 images of 20 patients on a share), `study-folds.csv` as
    `dataset split` wrote it, and the results `out` of a run on it."""
    folder = tmp_path_factory.mktemp("folds")
    rng = np.random.default_rng(0)
    (folder / "share").mkdir()
    rows = ["path,label,patient_id"]
    for i in range(GROUPS * EACH):
        patient = i // EACH
        pixels = rng.integers(0, 200, (16, 16, 3)) + 8 * (patient % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"share/{i}.png")
        rows.append(f"{i}.png,{'ab'[patient % 2]},p{patient}")
    (folder / "project").mkdir()
    (folder / "project/study.csv").write_text("\n".join(rows) + "\n")
    split = ("dataset", "split", "csv:project/study.csv", "--folds", FOLDS, "--images", "share")
    done = call(*split, "--group", "patient_id", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "csv:project/study-folds.csv --images share" in done.stdout
    done = call(
        *("run", "--datasets", "csv:project/study-folds.csv", "--images", "share"),
        *("--backbones", "tiny-clip", "--methods", "ncm,linear-probe", "--shots", "2"),
        *("--seeds", "1-2", "--views", "none", "--out", "out"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_written_table_keeps_patients_whole_and_classes_even(study: Path) -> None:
    with (study / "project/study-folds.csv").open() as file:
        rows = list(csv.DictReader(file))
    fold_of = {row["group"]: row["fold"] for row in rows}
    assert all(fold_of[row["group"]] == row["fold"] for row in rows)
    assert set(fold_of.values()) == set("12345")
    for label in "ab":
        sizes = [sum(r["label"] == label and r["fold"] == f for r in rows) for f in "12345"]
        assert sizes == [6] * FOLDS


def test_each_fold_is_tested_once_and_trained_on_none_of_its_patients(study: Path) -> None:
    source = f"csv:{study / 'project/study-folds.csv'}"
    spec = RunSpec().merge({"datasets": [source], "images": [str(study / "share")]})
    whole = load_dataset(load_registry(), spec, source)
    scenes = arrange(spec, {source: whole})
    tested = [protocols.test_rows(scene.data) for scene in scenes]
    assert sorted(row for rows in tested for row in rows) == list(range(GROUPS * EACH))
    for scene, rows in zip(scenes, tested, strict=True):
        drawn = draw("few-shot", scene.data, None, 1, "nested", "full", "image")
        assert drawn.val is not None
        parts = [rows, drawn.train.tolist(), drawn.val.tolist()]
        assert sorted(row for part in parts for row in part) == list(range(GROUPS * EACH))
        groups = whole.splits["train"].groups
        assert groups is not None
        held = [{groups[row] for row in part} for part in parts]
        assert sum(map(len, held)) == GROUPS  # no patient is in two parts
        assert len(held[2]) >= 2
        assert scene.data.counts("test") == [6, 6]


def test_records_say_their_fold_and_results_take_the_folds_as_one(study: Path) -> None:
    results = vipbench.Results(study / "out")
    with Store(study / "out", readonly=True) as store:
        records = [r for r in store.records() if r.cell.method == "ncm" and r.cell.seed == 1]
        predictions = [store.predictions(record.key) for record in records]
    names = [f"study-folds@fold-{k}" for k in range(1, FOLDS + 1)]
    assert [record.cell.dataset for record in records] == names
    fields = [(r.to_dict()["data"]["fold"], r.to_dict()["data"]["folds"]) for r in records]
    assert fields == [(f"fold-{k}", FOLDS) for k in range(1, FOLDS + 1)]

    labels = np.concatenate([p.labels for p in predictions if p is not None])
    scores = np.concatenate([p.scores for p in predictions if p is not None])
    pooled = compute_metrics(labels, scores, ["a", "b"])
    frame = results.frame()
    assert set(frame["dataset"]) == {"study-folds"}
    assert len(frame) == 2 * len(SEEDS)
    row = frame[(frame["method"] == "ncm") & (frame["seed"] == 1)].iloc[0]
    assert row["n"] == GROUPS * EACH
    for metric in ("accuracy", "auroc", "macro_f1"):
        assert row[metric] == pytest.approx(pooled[metric], abs=1e-12)
    mean = np.mean([record.metrics["auroc"] for record in records])
    assert pooled["auroc"] != pytest.approx(mean)  # which is not the metric of all images
    assert len(results.frame(folds=True)) == 2 * len(SEEDS) * FOLDS

    table = (study / "out/table.md").read_text()
    assert "study-folds (60 test images" in table
    assert "@fold" not in table
    claim = results.compare("ncm", "linear-probe", population="images").claim
    assert (claim.interval.n_groups, claim.n_images) == (GROUPS, GROUPS * EACH)
    one = results.table(datasets="study-folds@fold-2")
    assert "study-folds@fold-2 (12 test images" in repr(one)
    with pytest.raises(UsageError, match="study-folds@fold-9"):
        results.table(datasets="study-folds@fold-9")


def test_a_fold_by_itself_is_the_same_cell(study: Path) -> None:
    project = study / "project/study-folds.csv"
    given = {"datasets": f"csv:{project}@fold-2", "images": study / "share", "shots": 2, "seeds": 1}
    given |= {"backbones": "tiny-clip", "methods": "ncm", "views": "none", "out": study / "out"}
    planned = vipbench.plan(**given)
    assert [(c.state, c.dataset) for c in planned.itertuples()] == [("done", "study-folds@fold-2")]
    spec = RunSpec.parse({"datasets": f"csv:{os.path.relpath(project)}@fold-2"})
    assert RunSpec.from_yaml(spec.save(study / "suite")).datasets == (f"csv:{project}@fold-2",)


def test_what_cannot_be_folds_is_refused(study: Path) -> None:
    rows = (study / "project/study-folds.csv").read_text().splitlines()
    bad = study / "project/bad.csv"

    def refusal(text: str, source: str = f"csv:{bad}", **more: str) -> str:
        bad.write_text(text + "\n")
        spec = RunSpec().merge({"datasets": [source], "images": [str(study / "share")], **more})
        with pytest.raises(UsageError) as caught:
            arrange(spec, {source: load_dataset(load_registry(), spec, source)})
        return str(caught.value)

    path, label, fold, group = rows[1].split(",")
    moved = refusal("\n".join([rows[0], f"{path},{label},{int(fold) + 1},{group}", *rows[2:]]))
    for fact in (f"'{group}'", "fold-1", "fold-2", "--folds N --group COLUMN"):
        assert fact in moved
    assert re.search("row 2: .*'x'", refusal("\n".join([rows[0], f"{path},a,x,p", *rows[2:]])))
    one = [row for row in rows[1:] if row.split(",")[2] == "1"]
    assert "fold-1" in refusal("\n".join([rows[0], *one]))
    alone = [f"{i}.png,{'a' if i < 3 else 'b'},{1 if i < 4 else 2},p{i}" for i in range(9)]
    assert re.search("'a'.*fold-1", refusal("\n".join([rows[0], *alone])))
    assert "fold-7" in refusal("\n".join(rows), f"csv:{bad}@fold-7")
    assert f"{bad}@fold-1" in refusal("\n".join(rows), score_on="val:full")
    two = refusal(
        "\n".join(rows),
        protocol={"name": "cross-dataset"},
        datasets=[f"csv:{bad}", "synthderm"],
    )
    assert "folds" in two
