"""Columns that are made of others: H, averages over parts and over targets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest

from tests.results.samples import record_dict
from vipbench.results.records.cells import cells_of
from vipbench.results.records.comparable import TableError
from vipbench.results.records.record import Record
from vipbench.results.records.rerun_command import run_command
from vipbench.results.tables.comparison import comparison
from vipbench.results.tables.layout import Layout, lay_out
from vipbench.results.tables.presets import preset
from vipbench.results.tables.render import render
from vipbench.results.tables.table import Table


def made(
    dataset: str, accuracy: float, protocol: Mapping[str, Any], seed: int = 1, method: str = "vip"
) -> Record:
    value = record_dict(method, 4, seed, dataset=dataset, metrics={"accuracy": accuracy})
    value["protocol"] |= protocol
    value["provenance"]["dataset"] = {"source": dataset.partition(" ")[0]}
    return Record.of(value)


def halves(dataset: str, base: float, new: float, seed: int = 1) -> list[Record]:
    return [
        made(f"{dataset} [{part}]", value, {"name": "base-to-new", "part": part}, seed)
        for part, value in (("base", base), ("new", new))
    ]


def means(table: Table, row: str = "vip") -> dict[tuple[str, str], float | None]:
    i = next(i for i, r in enumerate(table.rows) if r.label == row)
    return {
        (str(table.place(i, j).dataset), table.place(i, j).metric): table.entries[i][j].mean
        for j in range(len(table.columns))
    }


def test_h_is_of_the_means_over_seeds() -> None:
    records = [*halves("a", 0.5, 0.2, 1), *halves("a", 0.9, 0.4, 2)]
    table = comparison(records, metrics=["accuracy", "ece"])
    found = means(table)
    assert found["a [H]", "accuracy"] == pytest.approx(2 * 0.7 * 0.3 / 1.0)
    # Of an error there is no harmonic mean, and of H no spread.
    assert ("a [H]", "ece") not in found
    column = [c.dataset for c in table.columns].index("a [H]")
    entry = table.entries[-1][column]
    assert (entry.sd, entry.n, entry.n_expected) == (None, 2, 2)
    assert "harmonic mean" in table.caption


def test_an_unfinished_half_has_no_h() -> None:
    records = halves("a", 0.5, 0.2)
    planned = [
        {"key": r.key, **dict(zip(("backbone", "dataset", "method", "shots", "seed"), r.slot,
                                  strict=True))}
        for r in [*records, *halves("a", 0.5, 0.2, 2)]
    ]  # fmt: skip
    table = lay_out(cells_of(records, planned), Layout(metrics=("accuracy",)))
    i = len(table.rows) - 1
    parts = {c.part: table.entries[i][j] for j, c in enumerate(table.columns)}
    assert list(parts) == ["base", "new", "H"]
    assert parts["H"].state == "unfinished"
    assert (parts["H"].n, parts["H"].n_expected) == (1, 2)


def test_averages_are_of_each_part_and_h_is_of_the_averages() -> None:
    # As in CoCoOp's tables: not the mean of the datasets' H.
    records = [*halves("a", 0.8, 0.2), *halves("b", 0.4, 0.6)]
    cells, layout = preset("base-to-new", cells_of(records, None), Layout(), [])
    table = lay_out(cells, layout)
    assert table.heads == ("dataset", "method")
    rows = {
        table.rows[i].cells[0]: [e.mean for e in line]
        for i, line in enumerate(table.entries)
        if table.rows[i].kind == "method"
    }
    assert rows["average over datasets"] == pytest.approx([0.6, 0.4, 0.48])
    assert rows["a"] == pytest.approx([0.8, 0.2, 0.32])
    header = render(table, "text").splitlines()[0].split()
    assert header[-3:] == ["base", "new", "H"]


def test_targets_are_averaged_without_their_source() -> None:
    def moved(target: str, value: float) -> Record:
        protocol = {
            "name": "cross-dataset",
            "source": "a",
            "source_given": "npz:PATH",
            "target": target,
        }
        return made(f"a->{target}", value, protocol)

    records = [made("a", 0.9, {}), moved("b", 0.4), moved("c", 0.6)]
    table = comparison(records, metrics=["accuracy"])
    found = means(table)
    assert list(dict(found)) == [
        (name, "accuracy") for name in ("a", "a->b", "a->c", "average over targets of a")
    ]
    assert found["average over targets of a", "accuracy"] == pytest.approx(0.5)
    assert re.search("few-shot .*a; cross-dataset .*a->b, a->c", table.caption)
    # An average over datasets takes a source and its targets for no datasets of one kind.
    wide = lay_out(cells_of(records, None), Layout(metrics=("accuracy",), average=True))
    assert not any(c.dataset == "average over datasets" for c in wide.columns)
    assert "--protocol cross-dataset" in run_command(records[1])
    assert "--datasets npz:PATH,a->b" in run_command(records[1]).replace("'", "")
    cells, layout = preset("transfer", cells_of(records, None), Layout(), [])
    assert [c.dataset for c in lay_out(cells, layout).columns][-1] == "average over targets of a"


def test_a_mapping_is_part_of_the_command() -> None:
    protocol = {"name": "domain-shift", "source": "a", "source_given": "a", "target": "b",
            "classes": {"x": ["y"]}}  # fmt: skip
    words = run_command(made("a->b [shift]", 0.5, protocol))
    value = words.partition("--protocol '")[2].partition("'")[0]
    assert json.loads(value)["classes"] == {"a->b": {"x": ["y"]}}


def test_mixed_protocols_are_reported_apart() -> None:
    records = [
        made("a", 0.5, {}),
        made("a [imbalanced]", 0.4, {"name": "imbalanced"}),
        *halves("a", 0.5, 0.3),
    ]
    table = comparison(records)
    for part in (
        "few-shot on a;",
        "imbalanced on a [imbalanced];",
        "base-to-new on a [base], a [new]",
    ):
        assert part in table.caption
    assert "mixed" not in table.caption
    assert not any("differ" in note for note in table.notes)
    with pytest.raises(TableError, match="base-to-new alone"):
        preset("base-to-new", cells_of(records, None), Layout(), [])
    with pytest.raises(TableError, match="cross-dataset or domain-shift"):
        preset("transfer", cells_of(records, None), Layout(), [])
