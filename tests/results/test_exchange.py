"""What leaves comes back, in every format, and nothing altered gets in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.results.samples import make, record_dict, scored
from vipbench.errors import UsageError
from vipbench.results.records.csv import RECORD_COLUMNS
from vipbench.results.records.predictions import Predictions
from vipbench.results.records.record import Record
from vipbench.results.sharing.files import format_of, read_file, write_rows
from vipbench.results.sharing.privacy import Pseudonyms
from vipbench.results.sharing.rows import (
    COLUMNS,
    export_rows,
    read_rows,
    row_hash,
    with_local_names,
)
from vipbench.results.store.store import Collection, Store
from vipbench.results.store.submissions import submitted_by, submitter

FORMS = ("csv", "jsonl", "parquet")
SALT = Pseudonyms(b"salt" * 8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two records of one test set, a hostile one without scores, a failed one, a dispute."""
    record, predictions = scored(3, "disputed")
    nudged = Predictions(
        predictions.ids,
        predictions.groups,
        predictions.labels,
        predictions.scores + np.float32([0, 1e-4, 0]),
    )
    from vipbench.results.records.metrics import compute_metrics

    changed = record.to_dict()
    changed["metrics"] = compute_metrics(nudged.labels, nudged.scores, record.data.class_names)
    hostile = record_dict("=cmd|' /C calc'!A0", 8, metrics={"accuracy": 0.1 + 0.2})
    hostile["notes"] = ["'quoted'", 'a,b\n"c"\u2028\ud800']
    with Collection(tmp_path / "out") as store:
        store.submit([scored(1), scored(2, "coop"), (Record.of(hostile), None)])
        store.add(make("failed", error="ValueError"))
        store.submit([(record, predictions), (submitted_by(Record.of(changed), "anna"), nudged)])
    return tmp_path / "out"


def rows(folder: Path, names: Pseudonyms | None = None, **more: Any) -> list[dict[str, Any]]:
    with Store(folder, readonly=True) as store:
        return list(export_rows(store, names, **more))


def plain(pairs: Any) -> list[tuple[str, Any]]:
    return [
        (r.to_json(), p and (p.ids, p.groups, p.labels.tolist(), p.scores.tolist()))
        for r, p in pairs
    ]


@pytest.mark.parametrize("form", FORMS)
def test_everything_comes_back(folder: Path, tmp_path: Path, form: str) -> None:
    path = tmp_path / f"e.{form}"
    write_rows(path, rows(folder), form)
    found = list(read_rows(read_file(path), "e"))
    with Store(folder, readonly=True) as store:
        expected = [(r, store.predictions(r.key)) for r in store.records()]
        for key, several in store.submissions().items():
            expected += [(r, store.predictions(key, n)) for n, r in several]
    assert plain(found) == plain(expected)
    assert len(found) == 6
    assert [submitter(r) for r, _ in found].count("anna") == 1


@pytest.mark.parametrize("form", FORMS)
def test_pseudonyms_are_all_that_leaves(folder: Path, tmp_path: Path, form: str) -> None:
    path = tmp_path / f"e.{form}"
    write_rows(path, rows(folder, SALT), form)
    found = list(read_rows(read_file(path), "e"))
    text = repr(plain(found)) + ("" if form == "parquet" else path.read_text())
    assert "img/" not in text
    assert "patient" not in text
    scores = [p.scores for _, p in found if p is not None]
    np.testing.assert_array_equal(scores[0], scored(1)[1].scores)


def test_the_flat_columns_repeat_the_record(folder: Path) -> None:
    for row in rows(folder):
        assert tuple(row) == COLUMNS
        changed = row["record"]
        assert row["method"] == changed["cell"]["method"]
        assert row["accuracy"] == changed["metrics"].get("accuracy")
        assert row["sha256"] == row_hash(row)
    assert set(RECORD_COLUMNS) < set(COLUMNS)
    assert all(row["scores"] is None for row in rows(folder, with_scores=False))


def test_a_test_set_is_given_once(folder: Path) -> None:
    found = [row for row in rows(folder) if row["testset"] is not None]
    assert len({row["testset"] for row in found}) == 1
    assert [row["image_ids"] is not None for row in found] == [True, False, False, False]


def alter(change: Callable[[dict[str, Any]], Any]) -> Callable[[list[dict[str, Any]]], None]:
    return lambda rows: change(rows[0])


def rehash(row: dict[str, Any]) -> None:
    row["sha256"] = row_hash(row)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (alter(lambda r: r["record"]["metrics"].update(accuracy=1.0)), "altered"),
        (alter(lambda r: r.update(accuracy=0.99)), "accuracy"),
        (alter(lambda r: r.update(shots="16", seed=9)), "shots, seed"),
        (alter(lambda r: r.update(scores=r["scores"][:-8] + "AAAAAAA=")), "altered"),
        (alter(lambda r: r["image_ids"].reverse()), "altered"),
        (alter(lambda r: r.update(image_ids=None)), "missing"),
        (alter(lambda r: r.update(export_schema=2)), "upgrade"),
        (alter(lambda r: r.update(export_schema=None)), "export_schema .*None"),
        (alter(lambda r: r.pop("record")), "'record'"),
        (
            alter(lambda r: (r["record"]["metrics"].update(accuracy=1.0), rehash(r))),
            "accuracy: 1 stored, 0.4 recomputed",
        ),
        (
            alter(lambda r: (r["record"].update(status="fine"), rehash(r))),
            "status",
        ),
        (
            alter(lambda r: (r["record"]["cell"].update(evil=1), rehash(r))),
            "cell.evil",
        ),
    ],
)
def test_what_was_altered_is_refused(
    folder: Path, change: Callable[[list[dict[str, Any]]], None], fact: str
) -> None:
    found = json.loads(json.dumps(rows(folder)))
    change(found)
    with pytest.raises(UsageError, match=rf"'e', record 1: .*{fact}"):
        list(read_rows(found, "'e'"))


@pytest.mark.parametrize(
    ("name", "content", "fact"),
    [
        ("e.txt", b"", r"\*\.parquet, .*--format"),
        ("e.jsonl", b"{", "jsonl"),
        ("e.jsonl", b"[1]\n", "JSON object"),
        ("e.jsonl", b'{"a": 1}\n', "columns"),
        ("e.csv", b"a,b\n1,2\n", "columns"),
        ("e.csv", b"\xff\xfe", "csv"),
        ("e.parquet", b"PAR1", "parquet"),
    ],
)
def test_a_file_that_is_none_of_ours(tmp_path: Path, name: str, content: bytes, fact: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=fact):
        list(read_rows(read_file(path), name))


def test_an_unknown_format_is_reported() -> None:
    with pytest.raises(UsageError, match="'parquet'"):
        format_of(Path("x"), "parket")
    assert format_of(Path("x.CSV"), None) == "csv"


def test_ones_own_names_come_back_to_pseudonyms(folder: Path) -> None:
    with Store(folder, readonly=True) as store:
        pairs = read_rows(rows(folder, SALT), "e")
        found = [p for _, p in with_local_names(pairs, store) if p is not None]
    for predictions in found:
        assert predictions.ids == scored(1)[1].ids
        assert predictions.groups == scored(1)[1].groups


@settings(max_examples=25)
@given(
    st.text(min_size=1, max_size=20),
    st.text(max_size=20),
    st.floats(0, 1),
    st.sampled_from(FORMS),
)
def test_any_names_survive(
    tmp_path_factory: pytest.TempPathFactory, name: str, note: str, number: float, form: str
) -> None:
    changed = record_dict(name, metrics={"accuracy": number})
    changed["notes"] = [note]
    record = Record.of(changed)
    path = tmp_path_factory.mktemp("any") / f"e.{form}"
    with Store(path.parent) as store:
        store.add(record)
        write_rows(path, export_rows(store, None), form)
    assert [r for r, _ in read_rows(read_file(path), "e")] == [record]


def test_the_page_documents_every_column_and_its_example_runs(
    repo: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (repo / "docs" / "exchange.md").read_text(encoding="utf-8")
    changed = set(re.findall(r"`(\w+)`", page))
    assert set(COLUMNS) - set(RECORD_COLUMNS) <= changed
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    write_rows(tmp_path / "results.parquet", rows(folder, SALT), "parquet")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    np.testing.assert_array_equal(names["scores"], scored(1)[1].scores)
