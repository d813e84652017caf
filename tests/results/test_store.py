from __future__ import annotations

import csv
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.results.samples import content, filled, make, planned_cell, record_dict, scored
from vipbench.results.records.plan import PlannedCell
from vipbench.results.records.predictions import Predictions
from vipbench.results.records.record import Record, RecordError
from vipbench.results.store import sqlite as schema
from vipbench.results.store.lock import StoreError
from vipbench.results.store.store import Store


def test_records_and_predictions_come_back(tmp_path: Path) -> None:
    record, predictions = scored(1)
    failed = make("coop", error="ValueError")
    with Store(tmp_path / "new" / "out") as store:
        store.add(record, predictions)
        store.add(failed)
        assert store.status() == {record.key: "ok", failed.key: "error"}
    with Store(tmp_path / "new" / "out", readonly=True) as store:
        assert store.records() == [record, failed]
        assert store.records(history=False)[0].history == []
        assert store.record(record.key) == record
        assert store.record("0" * 64) is None
        found = store.predictions(record.key)
        assert found is not None
        assert (found.ids, found.groups) == (predictions.ids, predictions.groups)
        assert found.labels.dtype == np.int64
        assert found.scores.dtype == np.float32
        np.testing.assert_array_equal(found.labels, predictions.labels)
        np.testing.assert_array_equal(found.scores, predictions.scores)
        assert store.predictions(failed.key) is None
        with pytest.raises(StoreError, match="read"):
            store.add(make("x"))
    with pytest.raises(StoreError, match="closed"):
        store.status()


def test_odd_ids_come_back(tmp_path: Path) -> None:
    value = record_dict(metrics={"n": 2}) | {
        "data": record_dict()["data"] | {"test_counts": [1, 0, 1]}
    }
    ids = ["a\udcff.png", '=cmd,\n"\u202e']
    predictions = Predictions(ids, None, np.array([0, 2]), np.zeros((2, 3)))
    with Store(tmp_path) as store:
        store.add(Record.of(value), predictions)
        found = store.predictions(value["key"])
        assert found is not None
        assert (found.ids, found.groups) == (ids, None)
        store.export_predictions_csv(tmp_path / "p.csv")
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert [row[1] for row in rows] == ["id", "a\\udcff.png", "'=cmd,\n\"\u202e"]


def test_a_failure_is_replaced_and_a_result_never(tmp_path: Path) -> None:
    (record, predictions), failed = scored(1), make(seed=1, error="ValueError")
    assert failed.key == record.key
    with Store(tmp_path) as store:
        store.add(failed)
        store.add(make(seed=1, error="TypeError"))
        assert store.record(record.key).error.type == "TypeError"  # type: ignore[union-attr]
        store.add(record, predictions)
        assert store.records() == [record]
        with pytest.raises(StoreError, match="already"):
            store.add_many([scored(2), (record, predictions)])
        for later in (record, failed):
            with pytest.raises(StoreError, match=f"already.*vip .*toyderm.*{record.key}"):
                store.add(later)
        with pytest.raises(RecordError, match="failed"):
            store.add(make("coop", error="ValueError"), predictions)
        assert store.records() == [record]
        assert store.predictions(record.key) is not None


def test_test_sets_are_kept_once(tmp_path: Path) -> None:
    path = filled(tmp_path)
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM testsets").fetchone() == (1,)
        assert db.execute("SELECT count(*) FROM predictions").fetchone() == (3,)
    db.close()


def test_plans_merge(tmp_path: Path) -> None:
    def cell(key: str, method: str, seed: int, **more: Any) -> PlannedCell:
        return planned_cell(key, "b", "d", method, 4, seed, **more)

    with Store(tmp_path) as store:
        assert store.plan() == []
        store.save_plan([cell("a", "coop", 1), cell("b", "vip", 1)])
        # Other settings for vip's seed 1, a new seed, an impossible row.
        impossible = cell("", "maple", 1, status="impossible", reason="no vision transformer")
        store.save_plan([{**cell("c", "vip", 1).stored(), "group": 7}, cell("d", "vip", 2)])
        store.save_plan([impossible])
    with Store(tmp_path, readonly=True) as store:
        assert [(c.key, c.method, c.seed, c.run) for c in store.plan()] == [
            ("", "maple", 1, 3),
            ("c", "vip", 1, 2),
            ("d", "vip", 2, 2),
            ("a", "coop", 1, 1),
        ]
        assert [c.reason for c in store.plan(latest=True)] == ["no vision transformer"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"shots": "all"},
        {"shots": True},
        {"seed": "1"},
        {"status": "maybe"},
        {"key": None},
        {"method": None},
        {"method": ""},
    ],
)
def test_a_wrong_plan_changes_nothing(tmp_path: Path, wrong: dict[str, Any]) -> None:
    good = planned_cell("k", "b", "d", "m", "full", 1)
    with Store(tmp_path) as store:
        store.save_plan([good])
        with pytest.raises(ValueError, match="planned cell"):
            store.save_plan([good.stored() | wrong])
        with pytest.raises(ValueError, match="planned cell"):
            store.save_plan([{"key": "k"}])
        assert store.plan() == [good]


def test_no_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"results\.sqlite: "):
        Store(tmp_path, readonly=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="folder"):
        Store(tmp_path / "file")


def test_a_reader_looks_on_while_a_driver_writes(tmp_path: Path) -> None:
    with Store(tmp_path) as writer, Store(tmp_path, readonly=True) as reader:
        for seed in range(3):
            writer.add(*scored(seed))
            assert len(reader.records()) == seed + 1


def test_an_older_layout_is_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path)
    with Store(tmp_path, readonly=True) as store:
        before = content(store)
    old = schema.VERSION
    monkeypatch.setattr(schema, "VERSION", old + 1)
    monkeypatch.setattr(schema, "READABLE", old + 1)
    monkeypatch.setitem(schema.MIGRATIONS, old, lambda db: db.execute("DROP TABLE IF EXISTS later"))
    with pytest.raises(StoreError, match=rf"layout {old}.*`?vipbench run"):
        Store(tmp_path, readonly=True)
    with Store(tmp_path) as store:
        assert content(store) == before
    with Store(tmp_path, readonly=True) as store:
        assert content(store) == before


def test_ten_thousand_records_are_listed_quickly(tmp_path: Path) -> None:
    filled(tmp_path)
    value = record_dict(metrics={"n": 10})
    value["history"] = [{"epoch": e, "loss": 1 / (e + 1)} for e in range(100)]
    one = Record.of(value)
    with Store(tmp_path) as store:
        store.add_many((one.model_copy(update={"key": f"{i:064x}"}), None) for i in range(10_000))
    started = time.process_time()
    with Store(tmp_path, readonly=True) as store:
        assert len(store.records(history=False)) == 10_004
    assert time.process_time() - started < 3


def test_pandas_reads_the_csv(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        for seed in (1, 2):
            store.add(*scored(seed))
        store.add(make("=cmd|' /C calc'!A0", "full", error="ValueError"))
        store.export_csv(tmp_path / "records.csv")
        store.export_predictions_csv(tmp_path / "predictions.csv")
        records = {r.key: r for r in store.records()}
    frame = pd.read_csv(tmp_path / "records.csv")
    assert list(frame.key) == list(records)
    assert list(frame.method) == ["vip", "vip", "'=cmd|' /C calc'!A0"]
    assert list(frame.shots) == ["4", "4", "full"]
    for row in frame.itertuples():
        record = records[row.key]
        if record.ok:
            assert row.accuracy == record.metrics["accuracy"]
            assert row.auroc == record.metrics["auroc"]
            assert json.loads(row.sensitivity) == record.metrics["sensitivity"]
        else:
            assert np.isnan(row.accuracy)
            assert (row.error_type, row.error_message) == ("ValueError", "it broke")
        assert json.loads(row.hparams) == record.hparams
    images = pd.read_csv(tmp_path / "predictions.csv")
    assert len(images) == 20
    expected = scored(1)[1]
    scores = np.array([json.loads(s) for s in images.scores[:10]], dtype=np.float32)
    np.testing.assert_array_equal(scores, expected.scores)
    right = (images.label == images.predicted)[:10].mean()
    assert right == pytest.approx(scored(1)[0].metrics["accuracy"])
    assert not list(tmp_path.glob("*.new"))


def test_records_share_what_is_equal(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        for seed in range(3):
            store.add(*scored(seed))
        one, other, _ = store.records(history=False)
        whole = [record.model_copy(update={"history": []}) for record in store.records()]
    assert [one, other] == whole[:2]
    assert one.data is other.data
    assert one.protocol is other.protocol
    assert one.provenance["backbone"] is other.provenance["backbone"]
    assert one.provenance["key_parts"] != other.provenance["key_parts"]
