from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.results.samples import make, record_dict
from vipbench.results.records.predictions import Predictions, check_together
from vipbench.results.records.recompute import key_problems
from vipbench.results.records.record import Record, RecordError, json_sha256

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(
    hparams=st.dictionaries(st.text(), json_values, max_size=4),
    notes=st.lists(st.text(), max_size=3),
    method=st.text(min_size=1),
    losses=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=5),
)
def test_a_record_comes_back_from_its_json(
    hparams: dict[str, Any], notes: list[str], method: str, losses: list[float]
) -> None:
    value = record_dict(method) | {
        "hparams": hparams,
        "notes": notes,
        "history": [{"epoch": i, "loss": loss} for i, loss in enumerate(losses)],
    }
    record = Record.of(value)
    again = Record.from_json(record.to_json())
    assert again == record
    assert again.to_json() == record.to_json()
    assert Record.from_json_parts(*record.to_json_parts()) == record
    assert [entry["loss"] for entry in again.history] == losses


def test_what_python_brings_becomes_json() -> None:
    value = record_dict()
    value["hparams"] = {
        "steps": (np.int64(3), np.float32(0.5)),
        "file": Path("a/b"),
        "never": float("inf"),
        "kinds": frozenset({"b", "a"}),
        "name": "odd\udcff",
    }
    value["history"] = [{"loss": float("nan")}]
    record = Record.of(value)
    assert record.hparams == {
        "steps": [3, 0.5],
        "file": "a/b",
        "never": "inf",
        "kinds": ["a", "b"],
        "name": "odd\\udcff",
    }
    assert record.history == [{"loss": None}]
    assert Record.from_json(record.to_json()) == record


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("cell", "shots"), -1, "cell.shots"),
        (("cell", "shots"), True, "cell.shots"),
        (("cell", "shots"), "all", "cell.shots"),
        (("cell", "seed"), 1.0, "cell.seed"),
        (("cell", "method"), "", "cell.method"),
        (("cell", "colour"), "red", "cell.colour"),
        (("key",), "abc", "key"),
        (("status",), "done", "status"),
        (("schema",), 2, "upgrade"),
        (("extra",), 1, "extra"),
        (("created",), "yesterday", "ISO 8601"),
        (("metrics", "accuracy"), float("nan"), "accuracy"),
        (("metrics", "accuracy"), "0.5", "accuracy"),
        (("metrics", "n"), 9, "10 "),
        (("metrics", "sensitivity"), {"nevus": float("inf")}, "sensitivity"),
        (("data", "test_counts"), [10], "test_counts"),
        (("data", "class_names"), ["a", "a", "b"], "twice"),
        (("error",), {"type": "ValueError", "message": "x"}, "'ok'"),
        (("status",), "error", "error"),
        (("protocol", "views"), None, "protocol.views"),
        (("hparams", "x"), object(), "hparams.x"),
    ],
)
def test_a_wrong_field_is_named(path: tuple[str, ...], value: Any, named: str) -> None:
    broken = record_dict()
    part = broken
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    with pytest.raises(RecordError, match=r"valid|upgrade") as caught:
        Record.of(broken) if path != ("schema",) else Record.from_json(json.dumps(broken))
    assert named in str(caught.value)


def test_a_failed_cell_has_no_number() -> None:
    failed = record_dict(error="ValueError")
    assert not Record.of(failed).ok
    with pytest.raises(RecordError, match="failed"):
        Record.of(failed | {"metrics": {"accuracy": 0.5, "n": 10}})


@pytest.mark.parametrize("text", ["", "[]", "{}", "nul", '{"schema": 1', "[" * 5000, "\ud800"])
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(RecordError):
        Record.from_json(text)


def test_json_that_is_none_is_refused() -> None:
    text = make().to_json().replace('"lr":0.002', '"lr":NaN')
    assert "NaN" in text
    with pytest.raises(RecordError, match="NaN"):
        Record.from_json(text)


GOOD = {
    "ids": ["a", "b"],
    "groups": None,
    "labels": np.array([0, 1]),
    "scores": np.array([[0.5, 1.0], [2.0, 0.0]]),
}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"ids": ["a"]}, "ids"),
        ({"groups": ["p", 3]}, "groups"),
        ({"labels": np.array([0, 2])}, "label"),
        ({"labels": np.array([0.0, 1.0])}, "labels"),
        ({"labels": np.array([[0, 1]])}, "labels"),
        ({"scores": np.array([[np.nan, 0.0], [0.0, 0.0]])}, "finite"),
        ({"scores": np.array([[1e300, 0.0], [0.0, 0.0]])}, "float32"),
        ({"scores": np.array([1.0, 2.0])}, "shape"),
        ({"scores": np.zeros((2, 1))}, "shape"),
        ({"scores": np.zeros((2, 2), dtype=int)}, "floating"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_wrong_predictions_are_refused(change: dict[str, Any], named: str) -> None:
    assert Predictions(**GOOD).scores.dtype == np.float32
    with pytest.raises(RecordError, match=named):
        Predictions(**(GOOD | change))


def test_predictions_of_another_test_set_are_refused() -> None:
    two = Predictions(["a", "b"], None, np.array([0, 1]), np.zeros((2, 3)))
    with pytest.raises(RecordError, match=r"\[1, 1, 0\].*\[2, 5, 3\]"):
        check_together(make(), two)
    with pytest.raises(RecordError, match="failed"):
        check_together(make(error="ValueError"), two)


def test_the_protocol_of_a_key_is_the_records() -> None:
    """Base and new classes of one cell are records of their own, under keys of their own."""
    changed = record_dict()
    changed["provenance"]["key_parts"]["protocol"] = {"name": "base-to-new", "part": "base"}
    changed["key"] = json_sha256(changed["provenance"]["key_parts"])
    changed["protocol"] |= {"name": "base-to-new", "part": "base"}
    assert key_problems(Record.of(changed)) == []
    changed["protocol"]["part"] = "new"
    (problem,) = key_problems(Record.of(changed))
    assert re.match("protocol.part: .*'base'", problem)
