"""A results.sqlite of a stranger: nothing in it acts, and nothing small becomes large."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from tests.results.samples import filled, scored
from vipbench.results.records.record import sha256
from vipbench.results.store.lock import StoreError
from vipbench.results.store.rows import MOST_IMAGE_BYTES, predictions_hash, row_hash
from vipbench.results.store.sqlite import put_meta
from vipbench.results.store.store import FILE, Store

OBJECTS = {
    "spy": "CREATE TRIGGER spy AFTER INSERT ON records BEGIN DELETE FROM meta; END",
    "seen": "CREATE VIEW seen AS SELECT * FROM records",
    "more": "CREATE TABLE more (x)",
    "fast": "CREATE INDEX fast ON records (key)",
    "parameters": "ALTER TABLE parameters ADD COLUMN x TEXT",
}


@pytest.mark.parametrize("name", OBJECTS)
def test_what_is_not_of_the_schema_is_refused_by_name(tmp_path: Path, name: str) -> None:
    filled(tmp_path)
    db = sqlite3.connect(tmp_path / FILE)
    db.execute(OBJECTS[name])
    db.commit()
    db.close()
    before = (tmp_path / FILE).read_bytes()
    for readonly in (True, False):
        with pytest.raises(StoreError, match=f"'{name}'"):
            Store(tmp_path, readonly=readonly)
    assert (tmp_path / FILE).read_bytes() == before


def hostile(folder: Path, **values: object) -> str:
    """A store of one record whose predictions have these columns, every digest made to fit."""
    record, predictions = scored(77)
    with Store(folder) as store:
        store.add(record, predictions)
    db = sqlite3.connect(folder / FILE)
    with db:
        for column, value in values.items():
            table = "testsets" if column in ("size", "json") else "predictions"
            db.execute(f"UPDATE {table} SET {column} = ?", (value,))
        (blob,) = db.execute("SELECT json FROM testsets").fetchone()
        n, classes, scores = db.execute("SELECT n, classes, scores FROM predictions").fetchone()
        name = sha256(zlib.decompress(blob))
        db.execute("UPDATE testsets SET sha256 = ?", (name,))
        told = predictions_hash(name, n, classes, zlib.decompress(scores))
        db.execute("UPDATE records SET predictions_sha256 = ?", (told,))
        row = list(db.execute("SELECT * FROM records").fetchone())
        row[-1] = row_hash(*row[:-1])
        db.execute("UPDATE records SET sha256 = ?", (row[-1],))
        put_meta(db, "records", {"count": 1, "xor": row[-1]})
    db.close()
    return record.key


def zeros(size: int) -> bytes:
    packer, block = zlib.compressobj(9), bytes(1 << 20)
    return b"".join(packer.compress(block) for _ in range(size >> 20)) + packer.flush()


EMPTY = json.dumps({"ids": [[]] * 40_000, "groups": None, "labels": []}).encode()
GIB = 1 << 30
BLOCKS = {
    "scores of more images": {"n": GIB // 16, "classes": 4, "scores": zeros(GIB)},
    "a larger test set": {"size": GIB, "json": zeros(GIB)},
    "values without number": {"size": len(EMPTY), "json": zlib.compress(EMPTY)},
}


@pytest.mark.parametrize("what", BLOCKS)
def test_a_small_block_that_becomes_large_is_refused(tmp_path: Path, what: str) -> None:
    key = hostile(tmp_path, **BLOCKS[what])
    assert (tmp_path / FILE).stat().st_size < 3 << 20
    read = (
        "import resource, sys; from vipbench.results.store.store import Store; "
        "store = Store(sys.argv[1], readonly=True); "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: store.predictions(sys.argv[2])\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", read, str(tmp_path), key],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    said, grown = done.stdout.splitlines()
    assert said.startswith("StoreError")
    assert key in said
    assert int(grown) < 32 * 1024, "in KiB"


def test_honest_sets_are_far_from_the_bounds() -> None:
    assert MOST_IMAGE_BYTES > 4096 + 255 + 64
