from __future__ import annotations

import re
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.results.samples import entry_of, make, planned, planned_cell, record_dict, wide
from vipbench.errors import UsageError
from vipbench.results.records.record import Record
from vipbench.results.tables import (
    FORMATS,
    MAJORITY,
    Column,
    Entry,
    TableError,
    comparison,
    render,
)

fractions = st.floats(0, 1)


@given(st.lists(fractions, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_mean_and_sd_are_numpys(values: list[float], rng: Any) -> None:
    records = [
        make("vip", 4, seed, metrics={"accuracy": value}) for seed, value in enumerate(values)
    ]
    cells = planned(records)
    rng.shuffle(records)
    entry = entry_of(comparison(records, cells), "vip", 4)
    assert entry.mean == np.mean(values)
    assert (entry.n, entry.n_expected) == (len(values), len(values))
    if len(values) == 1:
        assert entry.sd is None
    else:
        assert entry.sd == np.std(values, ddof=1)


@given(
    st.integers(1, 6).flatmap(lambda n: st.lists(st.sampled_from("dem"), min_size=n, max_size=n))
)
def test_no_number_where_a_seed_is_missing(fate: list[str]) -> None:
    """Each seed is done, failed (error) or missing."""
    whole = [make("vip", 4, seed, metrics={"accuracy": 0.123}) for seed in range(len(fate))]
    cells = planned(whole)
    records = [make("coop", 4, 0), make("coop", 4, 1)]
    cells += planned(records)
    for record, how in zip(whole, fate, strict=True):
        if how == "d":
            records.append(record)
        if how == "e":
            records.append(make("vip", 4, record.cell.seed, error="ValueError"))
    table = comparison(records, cells)
    entry = entry_of(table, "vip", 4)
    done = fate.count("d")
    assert (entry.n, entry.n_expected) == (done, len(fate))
    if done == len(fate):
        assert entry.state == "done"
        return
    assert (entry.state, entry.mean, entry.sd, entry.rank) == ("unfinished", None, None, None)
    for name in FORMATS:
        message = render(table, name)
        assert "12.3" not in message
        assert "0.123" not in message
    assert f"– ({done} of {len(fate)})" in render(table, "github")
    assert any("failed" in n for n in table.notes) == ("e" in fate)


@given(st.lists(st.integers(0, 8), min_size=2, max_size=6))
def test_ties_share_the_rank(values: list[int]) -> None:
    records = [
        make(f"m{i}", 4, 1, metrics={"accuracy": v / 8, "ece": v / 8}) for i, v in enumerate(values)
    ]
    table = comparison(records, metrics=("accuracy", "ece"))
    for i, value in enumerate(values):
        assert entry_of(table, f"m{i}", 4).rank == 1 + sum(v > value for v in values)
        assert entry_of(table, f"m{i}", 4, "ece").rank == 1 + sum(v < value for v in values)
    assert {e.rank for e, r in zip(table.entries, table.rows, strict=True) for e in e
            if r.kind == "majority"} == {None}  # fmt: skip


def test_what_is_shown_equal_is_ranked_equal() -> None:
    records = [
        make("a", 4, 1, metrics={"accuracy": 0.81149}),
        make("b", 4, 1, metrics={"accuracy": 0.81051}),
        make("c", 4, 1, metrics={"accuracy": 0.5}),
    ]
    for decimals, ranks in ((1, [1, 1, 3]), (2, [1, 2, 3])):
        table = comparison(records, decimals=decimals)
        assert [entry_of(table, m, 4).rank for m in "abc"] == ranks
    assert "81.15" in render(table)


def test_transductive_methods_stand_apart() -> None:
    table = comparison(*wide())
    assert [(r.label, r.kind) for r in table.rows] == [
        (MAJORITY, "majority"),
        ("probe", "method"),
        ("vip", "method"),
        ("transclip", "transductive"),
        ("coop", "method"),
    ]
    place = Column("toyderm", "toy-clip", "accuracy", 4)
    j = table.columns.index(place)
    shown = {row.label: line[j] for row, line in zip(table.rows, table.entries, strict=True)}
    assert shown["transclip"].mean == 0.9
    assert shown["transclip"].rank is None
    assert shown["vip"].rank == 1
    assert "transclip ‡" in render(table, "text")


def test_rows_and_columns_keep_their_order() -> None:
    records = [make(m, k, 1) for k in ("full", 16, 2, 1) for m in ("z", "a", "m")]
    table = comparison(records)
    assert [row.label for row in table.rows] == [MAJORITY, "z", "a", "m"]
    assert [(c.metric, c.shots) for c in table.columns] == [
        (metric, k) for metric in ("accuracy", "macro_f1") for k in (1, 2, 16, "full")
    ]


def test_a_relabelled_method_is_shown_under_its_new_name() -> None:
    records = [make("vip", 4, 1)]
    cells = [planned_cell(records[0].key, "toy-clip", "toyderm", "ViP (ours)", 4, 1)]
    assert [row.label for row in comparison(records, cells).rows] == [MAJORITY, "ViP (ours)"]


def test_an_undefined_metric_is_no_number() -> None:
    value = record_dict(metrics={"auroc": None, "left_out": ["nevus", "melanoma", "keratosis"]})
    table = comparison([Record.of(value)], metrics=("auroc",))
    assert entry_of(table, "vip", 4, "auroc").state == "unfinished"
    assert any(re.search("AUROC.*undefined", note) for note in table.notes)
    assert any("toyderm: nevus" in note for note in table.notes)


def test_a_class_has_a_column_of_its_own() -> None:
    record = make(metrics={"sensitivity": {"nevus": 0.25, "melanoma": None, "keratosis": 1.0}})
    with pytest.raises(UsageError, match=r"'naevus'.*'nevus'"):
        comparison([record], metrics=("sensitivity:naevus",))
    table = comparison([record], metrics=("sensitivity:nevus",))
    assert entry_of(table, "vip", 4, "sensitivity:nevus").mean == 0.25
    assert "nevus" in table.caption


def test_unequal_seeds_are_reported() -> None:
    records = [make("coop", 4, s) for s in (1, 2)] + [make("vip", 4, s) for s in (1, 2, 3)]
    table = comparison(records)
    assert any("(1, 2; 1, 2, 3)" in note for note in table.notes)
    assert len(re.findall(r"\(n=\d\)", render(table))) == 2


def test_nothing_to_show_is_reported() -> None:
    with pytest.raises(TableError, match="cells"):
        comparison([])
    with pytest.raises(UsageError, match="'auroc'"):
        comparison([make()], metrics=("aurok",))
    with pytest.raises(TableError, match="ece"):
        comparison([make()], metrics=("ece", "ece"))
    with pytest.raises(TableError, match="decimals"):
        comparison([make()], decimals=-1)
    with pytest.raises(UsageError, match="'latex'"):
        render(comparison([make()]), "latx")
    table = comparison([], planned([make()]))
    assert [row.label for row in table.rows] == ["vip"]
    assert "– (0 of 1)" in render(table)


def test_entries_without_state_done_hold_no_number() -> None:
    with pytest.raises(ValueError, match="mean"):
        Entry("unfinished", mean=0.5)
    with pytest.raises(ValueError, match="done"):
        Entry("done")


def test_ten_thousand_records_make_a_table_quickly() -> None:
    value = Record.of(record_dict())
    records = [
        value.model_copy(
            update={
                "key": f"{i:064x}",
                "cell": value.cell.model_copy(
                    update={"method": f"m{i % 20}", "shots": 2 ** (i // 20 % 5), "seed": i // 100}
                ),
            }
        )
        for i in range(10_000)
    ]
    cells = planned(records)
    started = time.process_time()
    table = comparison(records, cells)
    for name in FORMATS:
        render(table, name)
    assert time.process_time() - started < 3
    assert "n = 100 seeds (0, …, 99)" in table.caption
