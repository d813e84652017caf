from __future__ import annotations

import csv
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.results.samples import make, record_dict, scored, unscored
from vipbench.results import schema
from vipbench.results.plan import PlanCell
from vipbench.results.predictions import Predictions
from vipbench.results.record import Record, RecordError
from vipbench.results.store import Store, StoreError

WRITER = Path(__file__).with_name("writer.py")


def content(store: Store) -> Any:
    """All that a store says, as plain values."""
    told = []
    for record in store.records():
        p = store.predictions(record.key)
        predictions = p and (p.ids, p.groups, p.labels.tolist(), p.scores.tolist())
        told.append((record.to_json(), predictions))
    return told, store.status(), store.plan()


def filled(folder: Path) -> Path:
    with Store(folder) as store:
        for seed in (1, 2, 3):
            store.add(*scored(seed))
        store.add(make("coop", error="ValueError"))
        store.save_plan([PlanCell(r.key, *r.slot) for r in store.records()])
    return folder / "results.sqlite"


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
        with pytest.raises(StoreError, match="read only"):
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
        with pytest.raises(StoreError, match="already holds"):
            store.add_many([scored(2), (record, predictions)])
        for later in (record, failed):
            with pytest.raises(StoreError, match=f"already holds.*vip on toyderm.*{record.key}"):
                store.add(later)
        with pytest.raises(RecordError, match="failed cell"):
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
    def cell(key: str, method: str, seed: int, **more: Any) -> PlanCell:
        return PlanCell(key, "b", "d", method, 4, seed, **more)

    with Store(tmp_path) as store:
        assert store.plan() == []
        store.save_plan([cell("a", "coop", 1), cell("b", "vip", 1)])
        # Other settings for vip's seed 1, a new seed, an impossible row.
        impossible = cell("", "maple", 1, status="impossible", reason="no vision transformer")
        store.save_plan([{**cell("c", "vip", 1).to_dict(), "group": 7}, cell("d", "vip", 2)])
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
    good = PlanCell("k", "b", "d", "m", "full", 1)
    with Store(tmp_path) as store:
        store.save_plan([good])
        with pytest.raises(ValueError, match="planned cell"):
            store.save_plan([good.to_dict() | wrong])
        with pytest.raises(ValueError, match="planned cell"):
            store.save_plan([{"key": "k"}])
        assert store.plan() == [good]


def test_no_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"results\.sqlite: no such file.*output folder"):
        Store(tmp_path, readonly=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="another output folder"):
        Store(tmp_path / "file")


@pytest.mark.parametrize("readonly", [True, False])
@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda p: p.write_bytes(b""), "is empty: it was cut short"),
        (lambda p: p.write_text("key,status\n" * 99), "is not a results file"),
        (lambda p: os.truncate(p, p.stat().st_size - 5000), "was cut short: [0-9]+ bytes of"),
        (lambda p: os.truncate(p, 8000), "cut short"),
        (lambda p: _sql(p, "PRAGMA application_id = 0"), "no results file"),
        (lambda p: _sql(p, "PRAGMA user_version = 99"), "layout 99.*upgrade vipbench"),
        (lambda p: _sql(p, "UPDATE records SET json = replace(json, '0.5', '0.9')"), "altered"),
        (lambda p: _sql(p, "UPDATE records SET status = 'ok'"), "altered"),
        (lambda p: _sql(p, "DELETE FROM records WHERE status = 'error'"), "3 records, 4 were"),
        (lambda p: _sql(p, "DELETE FROM meta WHERE name = 'plan'"), "'plan' was altered or is mis"),
        (lambda p: _sql(p, "UPDATE meta SET value = '{}' WHERE name = 'records'"), "'records'"),
        (lambda p: _sql(p, "DROP TABLE records"), "no such table"),
    ],
)
def test_damage_is_named(tmp_path: Path, readonly: bool, spoil: Any, named: str) -> None:
    path = filled(tmp_path)
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=named) as caught:
        Store(tmp_path, readonly=readonly)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    # The lock is free again: the same complaint, not that someone writes.
    with pytest.raises(StoreError, match=named):
        Store(tmp_path, readonly=readonly)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        ("UPDATE predictions SET scores = (SELECT scores FROM predictions LIMIT 1)", "scores"),
        ("UPDATE predictions SET scores = x'00'", "altered"),
        ("UPDATE predictions SET classes = 2", "altered"),
        ("UPDATE predictions SET n = 4611686018427387904", "altered"),
        ("UPDATE testsets SET json = x'789c'", "altered"),
        ("UPDATE testsets SET size = -1", "altered"),
        ("DELETE FROM predictions", "missing"),
    ],
)
def test_altered_predictions_are_named(tmp_path: Path, spoil: str, named: str) -> None:
    path = filled(tmp_path)
    _sql(path, spoil)
    with Store(tmp_path, readonly=True) as store:
        key = store.records()[2].key
        with pytest.raises(StoreError, match=f"predictions of record {key}.*{named}"):
            store.predictions(key)


def test_an_altered_history_is_named(tmp_path: Path) -> None:
    path = filled(tmp_path)
    _sql(path, "UPDATE histories SET json = '[]'")
    with Store(tmp_path, readonly=True) as store:
        assert len(store.records(history=False)) == 4
        with pytest.raises(StoreError, match="history of record"):
            store.records()


def _sql(path: Path, statement: str) -> None:
    db = sqlite3.connect(path)
    with db:
        db.execute(statement)
    db.close()


def test_flipped_bits_never_change_a_number(tmp_path: Path) -> None:
    path = filled(tmp_path / "good")
    with Store(path.parent, readonly=True) as store:
        expected = content(store)
    good, rng, found = path.read_bytes(), random.Random(1), 0
    bad = tmp_path / "bad"
    bad.mkdir()
    for _ in range(300):
        data, place = bytearray(good), rng.randrange(len(good))
        data[place] ^= 1 << rng.randrange(8)
        (bad / path.name).write_bytes(data)
        try:
            with Store(bad, readonly=True) as store:
                told = content(store)
        except StoreError:
            found += 1
        else:
            # The flip hit a byte that holds nothing.
            assert told == expected, place
    assert found > 50


def test_a_cut_file_never_changes_a_number(tmp_path: Path) -> None:
    path = filled(tmp_path / "good")
    good = path.read_bytes()
    (tmp_path / "bad").mkdir()
    for size in range(0, len(good), 1777):
        (tmp_path / "bad" / path.name).write_bytes(good[:size])
        with pytest.raises(StoreError):
            Store(tmp_path / "bad", readonly=True)


def _start(folder: Path, what: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(WRITER), str(folder), what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_killed_writers_lose_nothing(tmp_path: Path) -> None:
    rng, kept = random.Random(2), list[str]()
    for _ in range(20):
        writer = _start(tmp_path, "100000")
        assert writer.stdout is not None
        for _ in range(rng.randrange(1, 4)):
            kept.append(writer.stdout.readline().strip())
        time.sleep(rng.random() * 0.02)
        writer.kill()
        kept += writer.stdout.read().split()
        writer.wait()
        writer.stdout.close()
        assert writer.stdin is not None
        writer.stdin.close()
        # A reader first: it has to clear up what the dead writer left.
        with Store(tmp_path, readonly=True) as store:
            status = store.status()
        assert set(kept) <= set(status)
        assert len(status) - len(kept) <= 20
    with Store(tmp_path) as store:
        # One record a kill may have been kept and not said so; none is half there.
        records = store.records()
        assert [r.key for r in records] == [unscored(i)[0].key for i in range(len(records))]
        assert all(store.predictions(r.key) is not None for r in records)


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    first = _start(tmp_path, "hold")
    assert first.stdout is not None
    assert first.stdin is not None
    assert first.stdout.readline() == "open\n"
    who = json.loads((tmp_path / "results.lock").read_text())
    told = f"process {first.pid} on host {who['host']}, started {who['started']}"
    with pytest.raises(StoreError) as caught:
        Store(tmp_path)
    assert told in str(caught.value)
    with Store(tmp_path, readonly=True) as store:
        assert store.records() == []
    first.kill()
    first.wait()
    first.stdin.close()
    first.stdout.close()
    with Store(tmp_path) as store, pytest.raises(StoreError, match="in this very process"):
        Store(store.out_dir)
    Store(tmp_path).close()


def test_a_reader_looks_on_while_a_driver_writes(tmp_path: Path) -> None:
    with Store(tmp_path) as writer, Store(tmp_path, readonly=True) as reader:
        for seed in range(3):
            writer.add(*scored(seed))
            assert len(reader.records()) == seed + 1


def test_a_removed_file_does_not_come_back(tmp_path: Path) -> None:
    path = filled(tmp_path)
    # What a driver killed within a transaction leaves beside a file that is then removed.
    Path(f"{path}-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(504))
    path.with_name("results.sqlite.new").write_bytes(b"half")
    path.unlink()
    with Store(tmp_path) as store:
        assert store.records() == []
        store.add(*scored(1))


def test_an_older_layout_is_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path)
    with Store(tmp_path, readonly=True) as store:
        before = content(store)
    monkeypatch.setattr(schema, "VERSION", 2)
    monkeypatch.setitem(
        schema.MIGRATIONS, 1, lambda db: db.execute("CREATE TABLE later (x INTEGER) STRICT")
    )
    with pytest.raises(StoreError, match=r"older layout 1.*vipbench run"):
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


def test_a_full_folder_stays_whole(tmp_path: Path) -> None:
    """SQLite's own page limit stands for a full disk: the same error code, at a chosen moment."""
    filled(tmp_path)
    with Store(tmp_path) as store:
        before = content(store)
        assert store._db is not None
        (pages,) = store._db.execute("PRAGMA page_count").fetchone()
        store._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match="no space left"):
            _add(store, range(10, 500))
        count = len(store.records())
        store._db.execute("PRAGMA max_page_count = 100000")
        _add(store, range(500, 510))
        assert len(store.records()) == count + 10
        assert content(store)[0][: len(before[0])] == before[0]
    shutil.copytree(tmp_path, tmp_path / "copy")
    with Store(tmp_path / "copy") as store:
        assert len(store.records()) == count + 10


def _add(store: Store, seeds: Iterable[int]) -> None:
    for seed in seeds:
        store.add(*scored(seed))
