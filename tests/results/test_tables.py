from __future__ import annotations

import csv
import html
import io
import json
import math
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.results.samples import key_of, make, planned, record_dict
from vipbench.errors import UsageError
from vipbench.results.plan import PlanCell
from vipbench.results.record import Record
from vipbench.results.tables import (
    FORMATS,
    MAJORITY,
    Column,
    Entry,
    Row,
    Table,
    TableError,
    comparison,
    render,
)

GOLDEN = Path(__file__).with_name("golden")


def small() -> tuple[list[Record], list[PlanCell]]:
    """Zero-shot, two methods at 1 and 16 shots and full, one seed of one entry missing."""

    def one(method: str, shots: int | str, seed: int, accuracy: float, f1: float) -> Record:
        return make(method, shots, seed, metrics={"accuracy": accuracy, "macro_f1": f1})

    records = [
        one("zero-shot", 0, 0, 0.4, 0.35),
        one("coop", "full", 1, 0.8, 0.75),
        one("coop", "full", 2, 0.9, 0.8),
        one("coop", 1, 1, 0.5, 0.45),
        one("coop", 1, 2, 0.7, 0.55),
        one("coop", 16, 1, 0.7, 0.6),
        one("vip", 1, 2, 0.6, 0.5),
        one("vip", 1, 1, 0.6, 0.5),
        one("vip", 16, 1, 0.8, 0.7),
        one("vip", 16, 2, 0.9, 0.75),
        one("vip", "full", 1, 0.85, 0.7),
        one("vip", "full", 2, 0.85, 0.7),
    ]
    cells = planned(records)
    cells.append(PlanCell(key_of("missing"), "toy-clip", "toyderm", "coop", 16, 2))
    return records, cells


def wide() -> tuple[list[Record], list[PlanCell]]:
    """Two datasets and backbones, a pair that cannot be, a transductive method, a failed cell,
    unequal n, two versions of torch and of a setting, a leftover record."""
    records = []
    for dataset in ("toyderm", "chest_x&ray"):
        for backbone in ("toy-clip", "resnet"):
            for seed in (1, 2):
                records.append(make("probe", 4, seed, dataset=dataset, backbone=backbone))
    for seed in (1, 2, 3):
        value = record_dict("vip", 4, seed, metrics={"accuracy": 0.6 + seed / 100})
        value["protocol"]["views"] = 4
        value["provenance"]["torch"] = "2.13.0" if seed == 3 else "2.12.0"
        records.append(Record.of(value))
    for seed in (1, 2):
        value = record_dict("transclip", 4, seed, metrics={"accuracy": 0.9})
        value["provenance"]["method"]["needs"] = ["test_images"]
        records.append(Record.of(value))
    records.append(make("coop", 4, 1))
    records.append(make("coop", 4, 2, error="ValueError"))
    cells = planned(records)
    for dataset in ("toyderm", "chest_x&ray"):
        for seed in (1, 2):
            reason = "'vip' needs a text tower and 'resnet' has none"
            cells.append(PlanCell(None, "resnet", dataset, "vip", 4, seed, "impossible", reason))
    records.append(make("coop", 4, 1, key=key_of("older settings")))
    records.append(make("coop", 8, 1))
    return records, cells


SUFFIX = {"github": "md", "latex": "tex", "csv": "csv", "json": "json", "text": "txt"}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("which", [small, wide])
def test_recorded_tables(which: Any, format: str) -> None:
    records, cells = which()
    told = render(comparison(records, cells, title=which.__name__.capitalize()), format)
    file = GOLDEN / f"{which.__name__}.{SUFFIX[format]}"
    assert told == file.read_text(encoding="utf-8")


def entry_of(table: Table, method: str, shots: int | str, metric: str = "accuracy") -> Entry:
    row = [r.label for r in table.rows].index(method)
    places = [(c.metric, c.shots) for c in table.columns]
    return table.entries[row][places.index((metric, shots))]


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
        told = render(table, name)
        assert "12.3" not in told
        assert "0.123" not in told
    assert f"– ({done} of {len(fate)})" in render(table, "github")
    assert any("1 cell failed" in n or "cells failed" in n for n in table.notes) == ("e" in fate)


@given(st.lists(st.integers(0, 8), min_size=2, max_size=6))
def test_ties_share_the_rank(values: list[int]) -> None:
    records = [
        make(f"m{i}", 4, 1, metrics={"accuracy": v / 8, "ece": v / 8}) for i, v in enumerate(values)
    ]
    table = comparison(records, metrics=("accuracy", "ece"))
    better = sorted(set(values), reverse=True)
    for i, value in enumerate(values):
        assert entry_of(table, f"m{i}", 4).rank == better.index(value) + 1
        assert entry_of(table, f"m{i}", 4, "ece").rank == better[::-1].index(value) + 1
    assert {e.rank for e, r in zip(table.entries, table.rows, strict=True) for e in e
            if r.kind == "majority"} == {None}  # fmt: skip


def test_what_is_shown_equal_is_ranked_equal() -> None:
    records = [
        make("a", 4, 1, metrics={"accuracy": 0.81149}),
        make("b", 4, 1, metrics={"accuracy": 0.81051}),
        make("c", 4, 1, metrics={"accuracy": 0.5}),
    ]
    for decimals, ranks in ((1, [1, 1, 2]), (2, [1, 2, 3])):
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
    assert "transclip †" in render(table, "text")


def test_rows_and_columns_keep_their_order() -> None:
    records = [make(m, k, 1) for k in ("full", 16, 2, 1) for m in ("z", "a", "m")]
    table = comparison(records)
    assert [row.label for row in table.rows] == [MAJORITY, "z", "a", "m"]
    assert [(c.metric, c.shots) for c in table.columns] == [
        (metric, k) for metric in ("accuracy", "macro_f1") for k in (1, 2, 16, "full")
    ]


def test_a_relabelled_method_is_shown_under_its_new_name() -> None:
    records = [make("vip", 4, 1)]
    cells = [PlanCell(records[0].key, "toy-clip", "toyderm", "ViP (ours)", 4, 1)]
    assert [row.label for row in comparison(records, cells).rows] == [MAJORITY, "ViP (ours)"]


def test_an_undefined_metric_is_no_number() -> None:
    value = record_dict(metrics={"auroc": None, "left_out": ["nevus", "melanoma", "keratosis"]})
    table = comparison([Record.of(value)], metrics=("auroc",))
    assert entry_of(table, "vip", 4, "auroc").state == "unfinished"
    assert any("AUROC is undefined" in note for note in table.notes)
    assert any("toyderm: nevus" in note for note in table.notes)


def test_a_class_has_a_column_of_its_own() -> None:
    record = make(metrics={"sensitivity": {"nevus": 0.25, "melanoma": None, "keratosis": 1.0}})
    table = comparison([record], metrics=("sensitivity:nevus",))
    assert entry_of(table, "vip", 4, "sensitivity:nevus").mean == 0.25
    assert "Sensitivity of nevus" in table.caption


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("protocol", "views"), "none", "protocol.views: per-epoch | none"),
        (("protocol", "validation"), "full", "protocol.validation"),
        (("protocol", "precision"), "bf16", "protocol.precision"),
        (("protocol", "balance"), "class", "protocol.balance: null | class"),
        (("hparams", "lr"), 0.1, "hparams.lr: 0.002 | 0.1"),
        (("hparams", "extra"), 1, "hparams.extra: null | 1"),
        (("hparams", "extra"), "null", 'hparams.extra: null | "null"'),
        (("hparams", "n_ctx"), "4", 'hparams.n_ctx: 4 | "4"'),
        (("hparams", "n_ctx"), 4.0, "hparams.n_ctx: 4 | 4.0"),
        (("recipe",), None, "recipe"),
        (("cell", "method_name"), "coop", "method: vip | coop"),
        (("data", "fingerprint"), "f" * 64, "dataset.fingerprint"),
        (("data", "symptoms_sha256"), None, "symptoms_sha256"),
        (("provenance", "backbone", "fingerprint"), "f" * 64, "backbone.fingerprint"),
        (("provenance", "method", "revision"), 2, "method.revision: 1 | 2"),
    ],
)
def test_seeds_under_different_settings_are_never_averaged(
    path: tuple[str, ...], value: Any, named: str
) -> None:
    other = record_dict(seed=2)
    part: Any = other
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    with pytest.raises(TableError, match="different settings") as caught:
        comparison([make(seed=1), Record.of(other)])
    assert named in str(caught.value)
    assert "vip on toyderm, toy-clip, shots 4" in str(caught.value)
    # Of a failed cell there is no number to mix.
    failed = other | {"status": "error", "metrics": {}, "error": {"type": "E", "message": ""}}
    assert entry_of(comparison([make(seed=1), Record.of(failed)]), "vip", 4).state == "unfinished"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("timing", "train"), 9.0),
        (("created",), "2027-01-02T03:04:05+00:00"),
        (("data", "n_support"), 11),
        (("provenance", "stacked_cells"), 3),
    ],
)
def test_what_makes_no_number_may_differ(path: tuple[str, ...], value: Any) -> None:
    other = record_dict(seed=2)
    part: Any = other
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    table = comparison([make(seed=1), Record.of(other)])
    assert entry_of(table, "vip", 4).n == 2
    assert table.notes == ()


def test_notes_of_records_are_told_once() -> None:
    records = []
    for method in ("coop", "vip", "probe"):
        for seed in (1, 2):
            notes = ["fewer epochs than published"] if method != "probe" else []
            records.append(Record.of(record_dict(method, seed=seed) | {"notes": notes}))
    assert comparison(records).notes == ("coop and vip: fewer epochs than published.",)


def test_long_settings_that_differ_in_the_middle_differ() -> None:
    records = []
    for seed, middle in ((1, "a"), (2, "b")):
        value = record_dict(seed=seed)
        value["hparams"]["prompt"] = "x" * 100 + middle + "y" * 100
        records.append(Record.of(value))
    with pytest.raises(TableError, match=r"hparams.prompt: x+… \(SHA-256 \w+\) \| x+…"):
        comparison(records)


def test_other_images_or_weights_share_no_column() -> None:
    value = record_dict("coop")
    value["data"]["fingerprint"] = "e" * 64
    with pytest.raises(TableError, match=r"toyderm, toy-clip: .*dataset.fingerprint"):
        comparison([make("vip"), Record.of(value)])
    # Beside each other, on two datasets, they may stand.
    value["cell"]["dataset"] = "other"
    assert len(comparison([make("vip"), Record.of(value)]).columns) == 4


def test_zero_shot_serves_every_protocol() -> None:
    value = record_dict("zero-shot", 0, 0)
    value["protocol"] |= {"views": "none", "sampler": "coop", "validation": "none"}
    table = comparison([Record.of(value), make("vip")])
    assert table.notes == ()
    assert "training views per-epoch, support sampler nested" in table.caption


def test_the_same_cell_twice_is_refused_or_planned() -> None:
    first, other = make(), record_dict(key=key_of("other"))
    other["hparams"]["lr"] = 0.1
    second = Record.of(other)
    with pytest.raises(TableError, match=r"there twice.*hparams\.lr: 0\.002 \| 0\.1"):
        comparison([first, second])
    with pytest.raises(TableError, match="given twice"):
        comparison([first, first])
    table = comparison([first, second], planned([second]))
    assert entry_of(table, "vip", 4).n == 1
    assert table.notes == ("1 record of the same cells under earlier settings is not shown.",)


def test_unequal_seeds_are_said() -> None:
    records = [make("coop", 4, s) for s in (1, 2)] + [make("vip", 4, s) for s in (1, 2, 3)]
    table = comparison(records)
    assert any("unequal seeds (1, 2; 1, 2, 3)" in note for note in table.notes)
    assert len(re.findall(r"\(n=\d\)", render(table))) == 2


def test_nothing_to_show_is_said() -> None:
    with pytest.raises(TableError, match="no cells"):
        comparison([])
    with pytest.raises(UsageError, match="did you mean 'auroc'"):
        comparison([make()], metrics=("aurok",))
    with pytest.raises(TableError, match="once"):
        comparison([make()], metrics=("ece", "ece"))
    with pytest.raises(TableError, match="decimals"):
        comparison([make()], decimals=-1)
    with pytest.raises(UsageError, match="did you mean 'latex'"):
        render(comparison([make()]), "latx")
    table = comparison([], planned([make()]))
    assert [row.label for row in table.rows] == ["vip"]
    assert "– (0 of 1)" in render(table)


def test_entries_without_state_done_hold_no_number() -> None:
    with pytest.raises(ValueError, match="unfinished entry with mean"):
        Entry("unfinished", mean=0.5)
    with pytest.raises(ValueError, match="done entry"):
        Entry("done")


def test_json_is_the_table() -> None:
    table = comparison(*small())
    value = json.loads(render(table, "json"))
    assert value == json.loads(json.dumps(table.to_dict()))
    assert value["rows"][2]["entries"][1] == {
        "state": "done",
        "mean": 0.6,
        "sd": pytest.approx(math.sqrt(0.02)),
        "n": 2,
        "n_expected": 2,
        "rank": 1,
    }


# Hostile names.

HOSTILE = [
    *("%", "_", "&", "#", "$x$", "~^", "{", "}}", "\\", "\\input{a}", "<script>alert(1)</script>"),
    *("=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "a|b", "`code`", "**b**", "[x](http://y)"),
    *("![i](j)", "two\nlines", "tab\t", "cr\r", "\x1b[31mred", "\u202egnp", "'quoted'", '"q,q"'),
    *("ünïcødé ß", "中文", "α", "--x", "# head", "- item", "1. item", "<u>", "</td>", "&amp;"),
    *("\x00", "[1]", "*", "\u200b", "…", "°"),
]
names = st.sampled_from(HOSTILE) | st.text(min_size=1, max_size=8)


@given(st.lists(names, min_size=3, max_size=3, unique=True))
def test_hostile_names(three: list[str]) -> None:
    method, dataset, backbone = three
    records = [make(method, 4, seed, dataset=dataset, backbone=backbone) for seed in (1, 2)] + [
        make("plain", 4, seed, dataset=dataset, backbone="other") for seed in (1, 2)
    ]
    table = comparison(records)
    kept = [records[0].cell.method, records[0].cell.dataset, records[0].cell.backbone]
    _check_csv(render(table, "csv"), kept)
    _check_json(render(table, "json"), kept)
    _check_markdown(render(table, "github"), len(table.columns) + 1, len(table.rows))
    _check_latex(render(table, "latex"), len(table.columns))
    text = render(table, "text")
    assert all(char == "\n" or char.isprintable() for char in text)


def _check_csv(told: str, kept: list[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(told, newline="")))
    first = next(r for r in rows if r["kind"] == "method")
    for column, name in zip(("method", "dataset", "backbone"), kept, strict=True):
        found = first[column]
        assert not found.startswith(tuple("=+-@\t\r\n"))
        assert found.removeprefix("'") == name


def _check_json(told: str, kept: list[str]) -> None:
    assert not set("<>&") & set(told)
    value = json.loads(told)
    column = value["columns"][0]
    assert [value["rows"][1]["method"], column["dataset"], column["backbone"]] == kept


def _check_markdown(told: str, columns: int, rows: int) -> None:
    lines = told.split("\n")
    body = lines[: rows + 2]
    # Taken apart as GitHub does: a bar with no backslash before it parts two cells.
    for line in body:
        cells = re.split(r"(?<!\\)(?:\\\\)*\|", line)
        assert len(cells) == columns + 2, line
    assert lines[rows + 2] == ""
    words = "\n".join(lines)
    for tag in re.findall(r"<[^>]*>?", words):
        assert tag in ("<u>", "</u>")
    bare = re.sub(r"\\.", "", re.sub(r"\*\*[0-9.]+\*\*", "", words))
    assert not re.search(r"[`*\[\]_~]", bare)
    assert not any(re.match(r"\s*([-+#=]|\d+[.)])", line) for line in lines[rows + 3 :])
    assert html.unescape(words).isprintable() or "\n" in words


def _check_latex(told: str, columns: int) -> None:
    assert told.isascii()
    # What we write ourselves taken off, and every escape: no special character is left.
    bare = re.sub(r"\\[^a-zA-Z]", "", told)
    bare = re.sub(r"\$(?:\\[a-z]+|o|\^\\circ)\$", "", bare)
    bare = re.sub(r"\\[a-zA-Z]+", "", bare)
    assert not set('%#_^~<>|"`$\\') & set(bare)
    depth = 0
    for char in bare:
        depth += (char == "{") - (char == "}")
        assert depth >= 0
    assert depth == 0
    inside = told.split("\\midrule")[1:]
    for line in "".join(inside).split("\n"):
        if line.startswith("{}"):
            assert len(re.findall(r"(?<!\\)&", line)) == columns
            assert line.endswith(r"\\")


def test_latex_uses_booktabs_alone() -> None:
    """Every command comes with LaTeX itself, or with booktabs."""
    known = {
        *("begin", "end", "centering", "caption", "multicolumn", "par", "smallskip"),
        *("toprule", "midrule", "bottomrule", "cmidrule", "footnotesize", "textbf", "underline"),
        *("pm", "dagger", "alpha", "circ", "ss", "o", "i", "char", "ldots", "textbackslash"),
        *("textasciicircum", "textasciitilde", "textless", "textgreater", "textbar"),
    }
    table = comparison([make(name, 4, 1) for name in HOSTILE] + wide()[0][:1])
    assert set(re.findall(r"\\([a-zA-Z]+)", render(table, "latex"))) <= known


def test_titles_are_made_harmless() -> None:
    table = comparison([make()], title="# 100% <b>best</b>.")
    assert "\n\\# 100% &lt;b&gt;best&lt;/b&gt;. Accuracy" in render(table, "github")
    assert r"\caption{\# 100\% \textless{}b\textgreater{}best" in render(table, "latex")


def test_a_table_by_hand_renders() -> None:
    table = Table((Column("d", "b", "accuracy", 1),), (Row("m"),), ((Entry("blank"),),), "None.")
    assert render(table, "github").splitlines()[2].split("|")[2].strip() == ""


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


@pytest.mark.parametrize("which", [small, wide, None])
def test_latex_compiles(which: Any, tmp_path: Path) -> None:
    program = shutil.which("pdflatex") or pytest.skip("no LaTeX is installed")
    records, cells = which() if which else ([make(name, 4, 1) for name in HOSTILE], None)
    table = render(comparison(records, cells), "latex")
    head = r"\documentclass{article}\usepackage{booktabs}\begin{document}"
    (tmp_path / "t.tex").write_text(f"{head}\n{table}\\end{{document}}\n", encoding="utf-8")
    done = subprocess.run(
        [program, "-halt-on-error", "-interaction=nonstopmode", "t.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
