from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.results.samples import make, scored
from vipbench.results.records.predictions import Predictions
from vipbench.results.records.record import Record
from vipbench.results.store.lock import StoreError
from vipbench.results.store.store import Collection, Store
from vipbench.results.store.submissions import OWN, matches, submitted_by, submitter
from vipbench.results.tables import comparison


def by(name: str, seed: int = 1, nudge: float = 0.0) -> tuple[Record, Predictions]:
    """What `scored` makes, as handed in by `name`; `nudge` is added to the first score."""
    record, predictions = scored(seed)
    scores = predictions.scores.copy()
    scores[0, 0] += nudge
    theirs = Predictions(predictions.ids, predictions.groups, predictions.labels, scores)
    return submitted_by(record, name), theirs


def test_the_same_scores_are_kept_once(tmp_path: Path) -> None:
    with Collection(tmp_path) as store:
        assert store.submit([scored(1), by("anna"), by("ben"), scored(2)]) == [
            *("new", "same", "same", "new")
        ]
        assert [submitter(r) for r in store.records()] == [OWN, OWN]
        assert store.disputed() == []


def test_others_scores_stand_beside_until_one_is_chosen(tmp_path: Path) -> None:
    own, theirs = scored(1), by("anna", nudge=1e-3)
    key = own[0].key
    with Collection(tmp_path) as store:
        assert store.submit([own, theirs, by("ben", nudge=1e-3), scored(2)]) == [
            *("new", "other", "same", "new")
        ]
        assert store.disputed() == [key]
        # No table can show one of them by mistake, and the cell is not run again.
        assert [r.cell.seed for r in store.records()] == [2]
        assert store.status()[key] == "ok"
        with pytest.raises(StoreError, match=r"submissions.*--prefer"):
            store.predictions(key)
        with pytest.raises(StoreError, match="already"):
            store.add(*own)
        numbers = {submitter(record): n for n, record in store.submissions()[key]}
        assert numbers.keys() == {OWN, "anna"}
        for name, (_, predictions) in ((OWN, own), ("anna", theirs)):
            found = store.predictions(key, numbers[name])
            assert found is not None
            np.testing.assert_array_equal(found.scores, predictions.scores)
        with pytest.raises(StoreError, match="99"):
            store.choose({key: 99})
        store.choose({key: numbers["anna"]})
    with Store(tmp_path, readonly=True) as reader:
        assert reader.disputed() == []
        record = reader.record(key)
        assert record is not None
        assert submitter(record) == "anna"
        assert len(reader.submissions()[key]) == 2  # the other one is kept


def test_a_table_leaves_a_disputed_cell_open(tmp_path: Path) -> None:
    from vipbench.results.records.plan import PlannedCell

    with Collection(tmp_path) as store:
        store.submit([scored(1), by("anna", nudge=1.0), scored(2)])
        plan = [PlannedCell.of(scored(seed)[0]) for seed in (1, 2)]
        table = comparison(store.records(), plan)
    entry = table.entries[-1][0]
    assert (entry.state, entry.mean, entry.n, entry.n_expected) == ("unfinished", None, 1, 2)


def test_failures_give_way_and_are_never_a_dispute(tmp_path: Path) -> None:
    failed = make(seed=1, error="ValueError")
    with Collection(tmp_path) as store:
        store.add(failed)
        assert store.submit([(failed, None), by("anna"), (failed, None)]) == ["same", "new", "same"]
        (record,) = store.records()
        assert (submitter(record), record.ok) == ("anna", True)


def test_without_scores_the_metrics_decide(tmp_path: Path) -> None:
    record, _ = scored(1)
    other = make(seed=1, metrics={**record.metrics, "accuracy": 0.123})
    with Collection(tmp_path) as store:
        assert store.submit([scored(1), (record, None), (other, None)]) == ["new", "same", "other"]


def test_damage_among_submissions_is_seen(tmp_path: Path) -> None:
    with Collection(tmp_path) as store:
        store.submit([scored(1), by("anna", nudge=1.0)])
    with sqlite3.connect(tmp_path / "results.sqlite") as db:
        db.execute("DELETE FROM records WHERE id = 2")
    db.close()
    with pytest.raises(StoreError, match="damaged"):
        Store(tmp_path, readonly=True)


@pytest.mark.parametrize(
    ("preferred", "fits"),
    [("anna", True), ("anna@cpu", True), ("ben", False), ("anna@H100", False), ("@cpu", False)],
)
def test_who_is_preferred(preferred: str, fits: bool) -> None:
    record = submitted_by(make(), "anna")
    assert matches(record, preferred) is fits


def test_the_chain_of_submitters_is_kept() -> None:
    record: Any = submitted_by(submitted_by(make(), "anna"), "ben")
    assert submitter(record) == "anna via ben"
    assert submitter(submitted_by(submitted_by(make(), "anna"), "anna")) == "anna"
