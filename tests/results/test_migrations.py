"""Results files of every earlier layout, as the code of their time wrote them: read as they are,
brought to today's layout by the first writer, with the same content."""

from __future__ import annotations

import gzip
import sqlite3
from pathlib import Path

import pytest

from tests.results.samples import content, filled, scored
from vipbench.results.store import sqlite as schema
from vipbench.results.store.lock import StoreError
from vipbench.results.store.store import FILE, Store

DATA = Path(__file__).with_name("data")
EARLIER = range(1, schema.VERSION)


def unpacked(folder: Path, version: int) -> Path:
    path = folder / FILE
    path.write_bytes(gzip.decompress((DATA / f"layout-{version}.sqlite.gz").read_bytes()))
    return path


def version_of(path: Path) -> int:
    db = sqlite3.connect(path)
    (version,) = db.execute("PRAGMA user_version").fetchone()
    db.close()
    return int(version)


def layout_of(path: Path) -> set[str]:
    db = sqlite3.connect(path)
    found = {row[0] for row in db.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}
    db.close()
    return found


def test_there_is_a_file_of_every_earlier_layout() -> None:
    assert {path.name for path in DATA.glob("layout-*")} == {
        f"layout-{version}.sqlite.gz" for version in EARLIER
    }
    assert set(schema.MIGRATIONS) == set(EARLIER)


@pytest.mark.parametrize("version", EARLIER)
def test_migrated(tmp_path: Path, version: int) -> None:
    path = unpacked(tmp_path, version)
    assert version_of(path) == version
    before = path.read_bytes()
    with Store(tmp_path, readonly=True) as store:
        kept = content(store)
        assert len(store.records()) == 4
    assert path.read_bytes() == before
    with Store(tmp_path) as store:
        assert content(store) == kept
        record, predictions = scored(77)
        store.add(record, predictions, None)
    assert version_of(path) == schema.VERSION
    filled(tmp_path / "new")
    assert layout_of(path) == layout_of(tmp_path / "new" / FILE)
    with Store(tmp_path, readonly=True) as store:
        records, *_ = content(store)
        assert records[: len(kept[0])] == kept[0]
        assert store.record(record.key) == record


@pytest.mark.parametrize("version", EARLIER)
def test_damage_to_an_earlier_layout_is_named(tmp_path: Path, version: int) -> None:
    path = unpacked(tmp_path, version)
    db = sqlite3.connect(path)
    with db:
        db.execute("UPDATE records SET json = replace(json, '0.5', '0.9')")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="altered"):
        Store(tmp_path)
    with pytest.raises(StoreError, match="altered"):
        Store(tmp_path, readonly=True)
    if version >= schema.READABLE:
        assert path.stat().st_size >= len(before) or path.read_bytes() == before


def test_a_migration_that_is_cut_short_is_done_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = unpacked(tmp_path, 2)

    def fails(db: sqlite3.Connection) -> None:
        schema._add_parameters(db)
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setitem(schema.MIGRATIONS, 2, fails)
        with pytest.raises(StoreError):
            Store(tmp_path)
    assert version_of(path) == 2
    with Store(tmp_path) as store:
        assert len(store.records()) == 4
    assert version_of(path) == schema.VERSION
