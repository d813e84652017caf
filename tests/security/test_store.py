"""A results.sqlite of a stranger: nothing in it acts, and nothing small becomes large."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.results.samples import filled, scored
from vipbench.results.records.record import Record, sha256
from vipbench.results.store.lock import StoreError
from vipbench.results.store.rows import (
    COLUMNS,
    MOST_IMAGE_BYTES,
    NOTHING,
    Row,
    count,
    predictions_hash,
    row_hash,
)
from vipbench.results.store.sqlite import JOURNAL_MAGIC, put_meta
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


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plan", "[]"),
        ("plan", "[" * 100_000),
        ("plan", '{"runs": 1, "cells": [{"key": 5}]}'),
        ("plan", '{"runs": 1, "cells": 5}'),
        ("plan", f'{{"runs": {"9" * 5000}, "cells": []}}'),
        ("records", '{"count": 4}'),
        ("choices", "[[1]]"),
    ],
)
def test_an_entry_that_vipbench_does_not_write_is_damage(
    tmp_path: Path, name: str, text: str
) -> None:
    db = sqlite3.connect(filled(tmp_path))
    with db:
        hashed = (name, text, sha256(f"{name}\n{text}"))
        db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", hashed)
    db.close()
    with pytest.raises(StoreError, match=f"'{name}'"):
        Store(tmp_path, readonly=True)


def test_records_with_odd_provenance_break_no_table(cli: Cli, tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        for seed, changes in enumerate(({"metric_revisions": 5}, {"method": {"needs": 5}})):
            record, predictions = scored(seed, method=f"row {seed}")
            value = record.to_dict()
            value["provenance"] |= changes
            store.add(Record.of(value), predictions)
    done = cli("table", tmp_path)
    assert (done.returncode, "row 1" in done.stdout) == (0, True), done.stderr


def test_a_journal_removes_no_other_file(tmp_path: Path) -> None:
    """SQLite removes the super-journal that a journal names once it has rolled that back."""
    pages = filled(tmp_path).stat().st_size // 4096
    victim = tmp_path / "thesis.tex"
    victim.write_text("mine")
    name = bytes(victim)
    head = JOURNAL_MAGIC + b"".join(n.to_bytes(4) for n in (0, 0, pages, 512, 4096))
    tail = name + len(name).to_bytes(4) + sum(name).to_bytes(4) + JOURNAL_MAGIC
    journal = tmp_path / f"{FILE}-journal"
    journal.write_bytes(head.ljust(512, b"\0") + (0x40000000 // 4096 + 1).to_bytes(4) + tail)
    for readonly in (True, False):
        with pytest.raises(StoreError, match=journal.name):
            Store(tmp_path, readonly=readonly)
        assert victim.exists()


def test_rows_that_share_their_pages_are_refused(tmp_path: Path) -> None:
    """Of 40 rows each claims the same pages of one text, so that a file of 2 MB is read as 40."""
    with Store(tmp_path) as store:
        for seed in range(40):
            store.add(*scored(seed))
    db = sqlite3.connect(tmp_path / FILE)
    # SQLite keeps `start` bytes of each text's row in the table, the rest elsewhere.
    long, start, page = 1 << 20, 0, 4096
    least = (page - 12) * 32 // 255 - 23
    start = least + (long + 6 - least) % (page - 4)
    texts = [f'[{{"{i:04}":"' for i in range(1, 41)]
    sizes = [long] + [start + 8 + page - 4 - 6] * 39
    values = [
        f'{text}{"x" * (size - len(text) - 3)}"}}]' for text, size in zip(texts, sizes, strict=True)
    ]
    with db:
        for i, value in enumerate(values, 1):
            db.execute("UPDATE histories SET json = ? WHERE id = ?", (value, i))
        total = NOTHING
        for found in db.execute(f"SELECT {COLUMNS} FROM records").fetchall():
            row = Row(*found)._replace(history_sha256=sha256(values[0]))
            row = row._replace(sha256=row_hash(*row[:-1]))
            total = count(total, row, 1)
            hashed = (row.history_sha256, row.sha256, row.id)
            db.execute("UPDATE records SET history_sha256 = ?, sha256 = ? WHERE id = ?", hashed)
        put_meta(db, "records", total)
    db.execute("VACUUM")
    db.close()
    data = bytearray((tmp_path / FILE).read_bytes())
    places = [data.index(text.encode()) for text in texts]
    # Before a text: the size of its row in 3 bytes, its number, and a header of 5 or 6 bytes.
    begin = places[0] - 6
    shared = bytes(data[begin : begin + start + 4])
    size = bytes(data[begin - 4 : begin - 1])
    for number, place in enumerate(places[1:], 2):
        cell = size + bytes([number]) + shared
        at = data.rindex(bytes([number]), 0, place - 4) - 2
        data[at : at + len(cell)] = cell
    (tmp_path / FILE).write_bytes(data)
    assert len(data) < 3 * long
    db = sqlite3.connect(tmp_path / FILE)
    assert db.execute("SELECT sum(length(json)) FROM histories").fetchone() == (40 * long,)
    db.close()
    with (
        Store(tmp_path, readonly=True) as store,
        pytest.raises(StoreError, match="larger"),
    ):
        store.records()


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
        hashed = predictions_hash(name, n, classes, zlib.decompress(scores))
        db.execute("UPDATE records SET predictions_sha256 = ?", (hashed,))
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
# Twice what a block may have that is large for its size on the disk.
LARGE = 1 << 27
BLOCKS: dict[str, Callable[[], dict[str, object]]] = {
    "scores of more images": lambda: {"n": LARGE // 16, "classes": 4, "scores": zeros(LARGE)},
    "a larger test set": lambda: {"size": LARGE, "json": zeros(LARGE)},
    "values without number": lambda: {"size": len(EMPTY), "json": zlib.compress(EMPTY)},
}


@pytest.mark.parametrize("what", BLOCKS)
def test_a_small_block_that_becomes_large_is_refused(tmp_path: Path, what: str) -> None:
    key = hostile(tmp_path, **BLOCKS[what]())
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
    printed, grown = done.stdout.splitlines()
    assert printed.startswith("StoreError")
    assert key in printed
    assert int(grown) < 32 * 1024, "in KiB"


def test_honest_sets_are_far_from_the_bounds() -> None:
    assert MOST_IMAGE_BYTES > 4096 + 255 + 64
