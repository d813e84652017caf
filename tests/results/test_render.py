from __future__ import annotations

import csv
import html
import io
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.results.samples import make, small, wide
from vipbench.results.tables import (
    FORMATS,
    Column,
    Entry,
    Row,
    Table,
    comparison,
    render,
)

GOLDEN = Path(__file__).with_name("golden")


SUFFIX = {
    "github": "md",
    "latex": "tex",
    "html": "html",
    "csv": "csv",
    "json": "json",
    "text": "txt",
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("which", [small, wide])
def test_recorded_tables(which: Any, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    records, cells = which()
    rendered = render(comparison(records, cells, title=which.__name__.capitalize()), format)
    file = GOLDEN / f"{which.__name__}.{SUFFIX[format]}"
    assert rendered == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("format", ["github", "html", "latex"])
def test_words_at_the_heads_of_columns_begin_alike(format: str) -> None:
    table = comparison(*small())
    rows = tuple(replace(row, cells=("symptoms", "16", row.label)) for row in table.rows)
    rendered = render(replace(table, heads=("knowledge", "n_ctx", "method"), rows=rows), format)
    line = next(line for line in rendered.splitlines() if "Method" in line)
    words = re.findall(r"knowledge|n_?ctx|method", line.replace("\\_", "_"), re.IGNORECASE)
    assert words == ["Knowledge", "n_ctx", "Method"]


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


def _check_csv(rendered: str, kept: list[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(rendered, newline="")))
    first = next(r for r in rows if r["kind"] == "method")
    for column, name in zip(("method", "dataset", "backbone"), kept, strict=True):
        found = first[column]
        assert not found.startswith(tuple("=+-@\t\r\n"))
        assert found.removeprefix("'") == name


def _check_json(rendered: str, kept: list[str]) -> None:
    assert not set("<>&") & set(rendered)
    value = json.loads(rendered)
    column = value["columns"][0]
    assert [value["rows"][1]["method"], column["dataset"], column["backbone"]] == kept


def _check_markdown(rendered: str, columns: int, rows: int) -> None:
    lines = rendered.split("\n")
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


def _check_latex(rendered: str, columns: int) -> None:
    assert rendered.isascii()
    # What we write ourselves taken off, and every escape: no special character is left.
    bare = re.sub(r"\\[^a-zA-Z]", "", rendered)
    bare = re.sub(r"\$(?:\\[a-z]+|o|-|\^\\circ)\$", "", bare)
    bare = re.sub(r"\\[a-zA-Z]+", "", bare)
    assert not set('%#_^~<>|"`$\\') & set(bare)
    depth = 0
    for char in bare:
        depth += (char == "{") - (char == "}")
        assert depth >= 0
    assert depth == 0
    inside = rendered.split("\\midrule")[1:]
    for line in "".join(inside).split("\n"):
        if line.startswith("{}"):
            assert 1 <= len(re.findall(r"(?<!\\)&", line)) <= columns
            assert line.endswith(r"\\")


def test_latex_uses_booktabs_alone() -> None:
    """Every command comes with LaTeX itself, or with booktabs."""
    known = {
        *("begin", "end", "centering", "caption", "multicolumn", "par", "smallskip"),
        *("toprule", "midrule", "bottomrule", "cmidrule", "footnotesize", "textbf", "underline"),
        *("small", "medskip", "raggedright", "allowbreak", "setlength", "tabcolsep"),
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
