"""What damages a store, and what must not."""

from __future__ import annotations

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

import pytest

from tests.results.samples import content, filled, scored, unscored
from vipbench.results.store.lock import StoreError
from vipbench.results.store.store import Store

WRITER = Path(__file__).with_name("writer.py")


@pytest.mark.parametrize("readonly", [True, False])
@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda p: p.write_bytes(b""), "empty"),
        (lambda p: p.write_text("key,status\n" * 99), "results"),
        (lambda p: os.truncate(p, p.stat().st_size - 5000), "[0-9]+ bytes"),
        (lambda p: os.truncate(p, 8000), "cut"),
        (lambda p: _sql(p, "PRAGMA application_id = 0"), "results"),
        (lambda p: _sql(p, "PRAGMA user_version = 99"), "layout 99.*upgrade"),
        (lambda p: _sql(p, "UPDATE records SET json = replace(json, '0.5', '0.9')"), "altered"),
        (lambda p: _sql(p, "UPDATE records SET status = 'ok'"), "altered"),
        (lambda p: _sql(p, "DELETE FROM records WHERE status = 'error'"), "3 .*4"),
        (lambda p: _sql(p, "DELETE FROM meta WHERE name = 'plan'"), "'plan' "),
        (lambda p: _sql(p, "UPDATE meta SET value = '{}' WHERE name = 'records'"), "'records'"),
        (lambda p: _sql(p, "DROP TABLE records"), "'records' .*missing"),
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
        with pytest.raises(StoreError, match=f"predictions.*{key}.*{named}"):
            store.predictions(key)


def test_an_altered_history_is_named(tmp_path: Path) -> None:
    path = filled(tmp_path)
    _sql(path, "UPDATE histories SET json = '[]'")
    with Store(tmp_path, readonly=True) as store:
        assert len(store.records(history=False)) == 4
        with pytest.raises(StoreError, match="history"):
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
                stored = content(store)
        except StoreError:
            found += 1
        else:
            # The flip hit a byte that holds nothing.
            assert stored == expected, place
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


def test_a_removed_file_does_not_come_back(tmp_path: Path) -> None:
    path = filled(tmp_path)
    # What a driver killed within a transaction leaves beside a file that is then removed.
    Path(f"{path}-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(504))
    path.with_name("results.sqlite.new").write_bytes(b"half")
    path.unlink()
    with Store(tmp_path) as store:
        assert store.records() == []
        store.add(*scored(1))


def test_a_full_folder_stays_whole(tmp_path: Path) -> None:
    """SQLite's own page limit stands for a full disk: the same error code, at a chosen moment."""
    filled(tmp_path)
    with Store(tmp_path) as store:
        before = content(store)
        assert store._db is not None
        (pages,) = store._db.execute("PRAGMA page_count").fetchone()
        store._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match="space"):
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


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    first = _start(tmp_path, "hold")
    assert first.stdout is not None
    assert first.stdin is not None
    assert first.stdout.readline() == "open\n"
    who = json.loads((tmp_path / "results.lock").read_text())
    stored = f"process {first.pid} on host {who['host']}, started {who['started']}"
    with pytest.raises(StoreError) as caught:
        Store(tmp_path)
    assert stored in str(caught.value)
    with Store(tmp_path, readonly=True) as store:
        assert store.records() == []
    first.kill()
    first.wait()
    first.stdin.close()
    first.stdout.close()
    with Store(tmp_path) as store, pytest.raises(StoreError, match="open"):
        Store(store.out_dir)
    Store(tmp_path).close()
