"""Ranks of the leaderboard by paired tests, and what they fall back to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.results.samples import planned
from tests.results.simulated import folder
from vipbench.results.leaderboard.entries import APART, PAIRED, Entry, leaderboard
from vipbench.results.leaderboard.gather import Folders, Gathered
from vipbench.results.leaderboard.page import page_data
from vipbench.results.leaderboard.ranking import paired_ranks, stacked
from vipbench.results.records.cells import cells_of
from vipbench.results.stats.pairing import Pairing, Where
from vipbench.results.store.store import Store
from vipbench.results.tables.significance import unbeaten

METHODS = {"zero-shot": 0.0, "coop": 0.5, "linear-probe": 0.1, "vip": 1.1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("ranks"), methods=METHODS, n=150, per_patient=2)


def board(*paths: Path) -> list[Entry]:
    with Folders(paths) as found:
        return leaderboard(found.gather())


def at(entries: list[Entry], shots: int | str, metric: str = "accuracy") -> dict[str, int]:
    return {e.first.cell.method: e.ranks[metric] for e in entries if e.first.cell.shots == shots}


def test_they_are_those_of_the_paired_tests(made: Path) -> None:
    entries = board(made)
    with Store(made, readonly=True) as store:
        cells = cells_of(store.records(), store.plan())
        for shots in (1, 4, 16):
            own = [e for e in entries if e.first.cell.shots == shots]
            assert {e.rules["accuracy"] for e in own} == {PAIRED}
            ranks = at(entries, shots)
            pairing = Pairing(cells, store.predictions, draws=1000)
            place = Where("toyderm", "toy-clip", shots)
            best = unbeaten(pairing, ["coop", "linear-probe", "vip"], place, "accuracy")
            assert {m for m, rank in ranks.items() if rank == 1} == best
            means = {e.first.cell.method: e.bounds["accuracy"].mean for e in own}
            by_mean = sorted(ranks, key=lambda m: -means[m])
            assert [ranks[m] for m in by_mean] == sorted(ranks.values())


def test_pairs_part_what_overlapping_intervals_leave_tied(tmp_path: Path) -> None:
    # Names of one length share all their noise there: seeds move both alike, which pairs see alone.
    out = folder(tmp_path, methods={"coop": 0.4, "vip2": 0.5}, shots=(4,), n=900)
    assert at(board(out), 4) == {"vip2": 1, "coop": 2}
    with Store(out, readonly=True) as store:
        records, plan = list(store.records()), store.plan()
    alone = leaderboard(Gathered(records, plan=plan))  # without the scores
    assert {e.rules["accuracy"] for e in alone} == {APART}
    assert at(alone, 4) == {"vip2": 1, "coop": 1}


def test_a_metric_where_less_is_better(made: Path) -> None:
    entries = board(made)
    ece = {
        e.first.cell.method: (e.bounds["ece"].mean, e.ranks["ece"])
        for e in entries
        if e.first.cell.shots == 16
    }
    ordered = [rank for _, rank in sorted(ece.values())]
    assert ordered == sorted(ordered)


def test_what_cannot_be_paired_falls_back_and_says_so(made: Path, tmp_path: Path) -> None:
    with Store(made, readonly=True) as store:
        records = [r for r in store.records() if r.cell.shots == 4]
        loaded = {r.key: store.predictions(r.key) for r in records}
    own = [[r for r in records if r.cell.method == m] for m in ("coop", "vip")]
    assert stacked(own, loaded.get) is not None
    assert stacked([own[0], own[1][:2]], loaded.get) is None  # other seeds
    assert stacked(own, lambda key: None) is None  # no scores
    other = loaded[own[1][0].key]
    assert other is not None
    moved = {**loaded, own[1][0].key: type(other)(
        [*other.ids[1:], other.ids[0]], other.groups, other.labels, other.scores
    )}  # fmt: skip
    assert stacked(own, moved.get) is None  # other images
    # Two seeds carry no interval over seeds and images: nothing is claimed.
    two = stacked([records[:2] for records in own], loaded.get)
    assert two is not None
    assert paired_ranks(two, ["accuracy"]) == {}
    few = folder(tmp_path, methods={"coop": 0.4, "vip": 0.75}, seeds=(1, 2), n=90)
    entries = board(few)
    rules = {e.rules["accuracy"] for e in entries}
    assert rules == {APART}
    data = page_data(entries)
    assert {bound[6] for line in data["entries"] for bound in line[8] if bound} <= {"i", ""}


def test_many_records_are_not_tested_one_by_one(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vipbench.results.leaderboard.entries.MOST_PAIRED", 10)
    rules = [e.rules["accuracy"] for e in board(made) if e.first.cell.shots != 0]
    # One competition of three methods and three seeds fits.
    assert sorted(rules) == [APART] * 6 + [PAIRED] * 3


def test_equal_methods_share_a_rank(tmp_path: Path) -> None:
    out = folder(tmp_path, methods={"vip": 0.6}, shots=(4,), n=120)
    with Store(out) as store:
        pairs = []
        for record in store.records():
            value = record.to_dict()
            value["cell"]["method"] = "twin"
            value["key"] = record.key[::-1]
            pairs.append((type(record).of(value), store.predictions(record.key)))
        store.add_many(pairs)
        store.save_plan(planned([record for record, _ in pairs]))
    entries = board(out)
    assert at(entries, 4) == {"vip": 1, "twin": 1}
    assert np.ptp([e.bounds["accuracy"].mean for e in entries]) == 0
