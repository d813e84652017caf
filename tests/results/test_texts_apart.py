"""Rows whose texts saw more labelled images than their shots: marked, and ranked apart."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.results.samples import make, planned, record_dict
from tests.results.simulated import folder
from vipbench.results.compare.claims import compare
from vipbench.results.figures import draw
from vipbench.results.leaderboard.entries import leaderboard
from vipbench.results.leaderboard.gather import Folders
from vipbench.results.records.cells import Cells, cells_of
from vipbench.results.records.record import Record
from vipbench.results.records.rerun_command import run_command
from vipbench.results.stats.pairing import select
from vipbench.results.store.store import Store
from vipbench.results.tables import FORMATS, render
from vipbench.results.tables.layout import Layout, lay_out
from vipbench.results.tables.table import Table

SAW = 8
METHODS = {"zero-shot": 0.0, "coop": 0.5, "linear-probe": 0.1, "vip": 1.1, "vip[merge=mean]": 0.9}


def informed(record: Record) -> Record:
    """The record, had its symptoms been written from SAW images of each class."""
    value = record.to_dict()
    value["data"]["symptom_images_seen"] = SAW if "symptoms" in record.needs else 0
    return Record.of(value)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    plain = folder(tmp_path_factory.mktemp("plain"), methods=METHODS, n=90)
    out = tmp_path_factory.mktemp("seen")
    with Store(plain, readonly=True) as source, Store(out) as store:
        store.add_many(
            [(informed(record), source.predictions(record.key)) for record in source.records()]
        )
        store.save_plan(source.plan())
    return out


def opened(path: Path) -> tuple[Cells, Any]:
    with Store(path, readonly=True) as store:
        loaded = {key: store.predictions(key) for key in store.status()}
        return cells_of(store.records(), store.plan()), loaded.get


def at(table: Table, shots: int) -> dict[str, tuple[int | None, int | None]]:
    """method -> (rank, images that its texts saw) in the accuracy at some shots."""
    j = next(j for j, c in enumerate(table.columns) if (c.metric, c.shots) == ("accuracy", shots))
    return {
        row.label: (line[j].rank, line[j].saw)
        for row, line in zip(table.rows, table.entries, strict=True)
    }


def test_what_a_record_says() -> None:
    value = record_dict("vip", 4)
    value["data"]["symptom_images_seen"] = 8
    assert Record.of(value).texts_saw_more == 8
    for change in ({"shots": 8}, {"shots": "full"}):
        assert Record.of({**value, "cell": {**value["cell"], **change}}).texts_saw_more is None
    value["provenance"]["method"]["needs"] = []  # it does not read them
    assert Record.of(value).texts_saw_more is None
    assert make("vip", 4).texts_saw_more is None  # from before it was kept


def test_the_command_says_that_the_texts_came_from_a_file() -> None:
    value = record_dict("vip", 4)
    assert "FILE" not in run_command(Record.of(value))
    value["data"]["texts_from_files"] = ["symptoms"]
    assert "--symptoms FILE" in run_command(Record.of(value))


def test_they_are_ranked_among_themselves(seen: Path) -> None:
    cells, load = opened(seen)
    for layout in (Layout(), Layout(rows=("dataset", "shots", "metric"), cols=("method",))):
        table = lay_out(cells, layout, load)
        if layout == Layout():
            assert at(table, 4) == {
                "majority class": (None, None), "zero-shot": (None, None),
                "coop": (1, None), "linear-probe": (2, None),
                "vip": (1, SAW), "vip[merge=mean]": (2, SAW),
            }  # fmt: skip
            enough = at(table, 16)
            assert enough["vip"] == (1, None)
            assert {rank for rank, _ in enough.values() if rank} == {1, 2, 3, 4}
        for name in FORMATS:
            text = render(table, name)
            if name == "csv":
                kinds = {
                    (r["method"], r["shots"], r["kind"]) for r in csv.DictReader(io.StringIO(text))
                }
                assert {("vip", "4", "informed"), ("vip", "16", "method")} <= kinds
                continue
            mark = r"$\dagger$" if name == "latex" else "†"
            words = " ".join(text.replace(r"\allowbreak{}", "").split())
            assert "from 8 labelled training images" in words.partition(f"{mark}: ")[2]
            if name == "json":
                found = json.loads(text)
                saw = [e.get("saw") for row in found["rows"] for e in row["entries"]]
                assert SAW in saw
            else:
                assert f"vip {mark}" in text
                assert "coop †" not in text
    best = lay_out(cells, Layout(metrics=("accuracy",), highlight="significant"), load)
    # Both columns have a best one of their own.
    labels = at(best, 4)
    assert (labels["coop"][0], labels["vip"][0]) == (1, 1)


def test_comparisons_figures_and_the_leaderboard_say_so(seen: Path) -> None:
    cells, load = opened(seen)
    few = compare(select(cells, shots=[4]), load, "vip", ["coop"])
    assert any(re.search("vip: .* 8", note) for note in few.notes)
    assert not compare(select(cells, shots=[16]), load, "vip", ["coop"]).notes
    figure, caption = draw("fewshot", cells, load)
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["zero-shot", "coop", "linear-probe", "vip †", "vip[merge=mean] †"]
    assert re.search("†: .* 8", caption)
    figure, _ = draw("bars", select(cells, shots=[4]), load)
    labels = [text.get_text() for text in figure.axes[0].texts]
    assert sum(text.endswith("†") for text in labels) == 2
    with Folders([seen]) as found:
        entries = leaderboard(found.gather())
    where = {(e.first.cell.method, e.first.cell.shots): e.section for e in entries}
    assert where["vip", 4] == where["vip", 1] == "informed"
    assert where["vip", 16] == where["coop", 4] == where["zero-shot", 0] == "methods"


def test_ranks_over_datasets_leave_them_out(tmp_path: Path) -> None:
    names = [f"set {i}" for i in range(6)]
    plain = folder(tmp_path, methods=METHODS, datasets=names, shots=(4,), n=60)
    cells, load = opened(plain)
    records = {key: informed(record) for key, record in cells.records.items()}
    figure, caption = draw("cd", Cells(cells.planned, records), load)
    assert re.search("3 methods .*6 datasets", caption)
    assert "vip[merge=mean]" in caption
    words = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert "coop" in words
    assert "vip" not in words


def test_bars_of_knowledge(tmp_path: Path) -> None:
    plain = folder(tmp_path, methods=METHODS, shots=(4,), n=90)
    cells, load = opened(plain)
    kinds = {"vip": "symptoms", "coop": "useless", "linear-probe": "incorrect"}
    records, scores = [], {}
    for record in cells.records.values():
        value = record.to_dict()
        kind = kinds.get(record.cell.method)
        if kind is not None:
            value["cell"]["method"] = "vip" if kind == "symptoms" else f"vip ({kind} knowledge)"
            value["cell"]["method_name"] = "vip"
            value["provenance"]["method"]["needs"] = ["symptoms"]
            value["data"]["knowledge"] = kind
        records.append(Record.of(value))
        scores[record.key] = load(record.key)
    cells = cells_of(records, planned(records))
    figure, caption = draw("knowledge", cells, scores.get, title="Worth")
    assert re.match(r"Worth\. .*toyderm", caption)
    assert re.search("support sets.*test images", caption)
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["vip"]
    heights = {round(patch.get_height(), 6) for patch in axis.patches}
    labels = {}
    for cell, record in cells.done():
        labels.setdefault(cell.method, []).append(100 * record.metrics["accuracy"])
    shown = ["vip", "vip (useless knowledge)", "vip (incorrect knowledge)"]
    assert heights == {round(sum(labels[m]) / 3, 6) for m in shown}
    # An interval for each bar, and a line for class names and for the majority class.
    assert len(axis.lines) == 3 + 2
    (legend,) = figure.legends
    words = [text.get_text() for text in legend.get_texts()]
    assert words == [
        "symptoms (correct)", "useless knowledge", "incorrect knowledge", "zero-shot",
        "majority class",
    ]  # fmt: skip
