"""What a cell learned, beside its record."""

from __future__ import annotations

import sqlite3
from hashlib import sha256
from pathlib import Path

import pytest

from tests.results.samples import content, filled, scored
from vipbench.results import Predictions, Record, RecordError, Store, StoreError
from vipbench.results.store import sqlite as schema

DATA = bytes(range(256)) * 40


def learned(seed: int = 1) -> tuple[Record, Predictions]:
    record, predictions = scored(seed)
    value = record.to_dict()
    value["provenance"]["parameters"] = {"sha256": sha256(DATA).hexdigest(), "bytes": len(DATA)}
    return Record.of(value), predictions


def test_they_come_back_as_they_were(tmp_path: Path) -> None:
    record, predictions = learned()
    with Store(tmp_path) as store:
        store.add(record, predictions, DATA)
        store.add(*scored(2))
    with Store(tmp_path, readonly=True) as store:
        assert store.parameters(record.key) == DATA
        assert store.parameters(scored(2)[0].key) is None
        assert store.parameters("f" * 64) is None


def test_others_than_the_record_tells_of_are_refused(tmp_path: Path) -> None:
    record, predictions = learned()
    with Store(tmp_path) as store:
        with pytest.raises(RecordError, match=r"parameters\.sha256"):
            store.add(record, predictions, DATA + b"!")
        with pytest.raises(RecordError, match=r"parameters\.sha256.*None"):
            store.add(*scored(2), DATA)
        assert store.records() == []


def test_altered_ones_are_damage_and_missing_ones_are_none(tmp_path: Path) -> None:
    record, predictions = learned()
    with Store(tmp_path) as store:
        store.add(record, predictions, DATA)
    for statement in ("UPDATE parameters SET data = x'00'", "DELETE FROM parameters"):
        db = sqlite3.connect(tmp_path / "results.sqlite")
        with db:
            db.execute(statement)
        db.close()
        with Store(tmp_path, readonly=True) as store:
            assert store.records()[0] == record
            if statement.startswith("UPDATE"):
                with pytest.raises(StoreError, match="parameters"):
                    store.parameters(record.key)
            else:
                assert store.parameters(record.key) is None


@pytest.mark.parametrize("layout", [1, 2])
def test_a_store_from_before_there_were_any(tmp_path: Path, layout: int) -> None:
    filled(tmp_path)
    db = sqlite3.connect(tmp_path / "results.sqlite")
    with db:
        db.execute("DROP TABLE parameters")
        db.execute(f"PRAGMA user_version = {layout}")
    db.close()
    with Store(tmp_path, readonly=True) as store:
        before = content(store)
        assert all(store.parameters(key) is None for key in store.status())
    record, predictions = learned(9)
    with Store(tmp_path) as store:
        assert content(store) == before
        store.add(record, predictions, DATA)
        assert store.parameters(record.key) == DATA
    db = sqlite3.connect(tmp_path / "results.sqlite")
    assert schema.layout(db)[1] == schema.VERSION
    db.close()
