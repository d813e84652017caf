"""Tables of other shapes: presets, rows and columns, intervals, significance."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Cli
from tests.results.samples import CLASSES, make, planned
from tests.results.simulated import folder
from vipbench.errors import UsageError
from vipbench.results.records.cells import Cells, cells_of
from vipbench.results.records.comparable import TableError
from vipbench.results.records.metrics import compute_metrics
from vipbench.results.records.record import Record
from vipbench.results.stats.pairing import Pairing, Where, select
from vipbench.results.store.store import Store
from vipbench.results.tables import FORMATS, render
from vipbench.results.tables.comparison import comparison
from vipbench.results.tables.layout import Layout, lay_out
from vipbench.results.tables.presets import PRESETS, preset
from vipbench.results.tables.render import GLOSSARY
from vipbench.results.tables.significance import interval, unbeaten
from vipbench.results.tables.table import AVERAGE, SPREADS, Table

METHODS = {
    "zero-shot": 0.0,
    "coop": 0.05,
    "vip": 1.1,
    "vip[context=off]": 0.7,
    "vip[merge=mean]": 0.65,
}
HPARAMS: dict[str, dict[str, Any]] = {
    "vip": {"context": True, "merge": "attention"},
    "vip[context=off]": {"context": False, "merge": "attention"},
    "vip[merge=mean]": {"context": True, "merge": "mean"},
}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(
        tmp_path_factory.mktemp("two"),
        methods=METHODS,
        hparams=HPARAMS,
        datasets=["toyderm", "chest_x&ray"],
        shots=(1, 4, "full"),
        n=120,
    )


def with_symptoms(path: Path) -> None:
    """A zero-shot method on symptoms, better than the one on class names."""
    with Store(path) as store:
        pairs = []
        for record in store.records():
            if record.cell.method == "zero-shot":
                found = store.predictions(record.key)
                assert found is not None
                value = record.to_dict()
                value["cell"]["method"] = value["cell"]["method_name"] = "symptoms-mean"
                value["provenance"]["method"]["needs"] = ["symptoms"]
                value["key"] = record.key[::-1]
                scores = found.scores + np.eye(3)[found.labels].astype(np.float32)
                value["metrics"] = compute_metrics(found.labels, scores, CLASSES)
                pairs.append((Record.of(value), type(found)(found.ids, None, found.labels, scores)))
        store.add_many(pairs)
        store.save_plan(planned([record for record, _ in pairs]))


@pytest.fixture(scope="module")
def four(two: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("four")
    shutil.copy(two / "results.sqlite", out)
    with_symptoms(out)
    return out


def opened(path: Path) -> tuple[Cells, Any]:
    with Store(path, readonly=True) as store:
        loaded = {key: store.predictions(key) for key in store.status()}
        return cells_of(store.records(), store.plan()), loaded.get


def made(path: Path, name: str, **changes: Any) -> Table:
    cells, load = opened(path)
    cells, layout = preset(name, cells, Layout(**changes), list(changes))
    return lay_out(cells, layout, load)


def shown(table: Table) -> dict[tuple[str, ...], list[float | None]]:
    return {
        row.cells: [entry.mean for entry in line]
        for row, line in zip(table.rows, table.entries, strict=True)
    }


def test_the_default_layout_is_the_comparison(two: Path) -> None:
    with Store(two, readonly=True) as store:
        printed = comparison(store.records(), store.plan())
    assert lay_out(opened(two)[0], Layout()) == printed


def test_preset_comparison(two: Path) -> None:
    table = made(two, "comparison")
    assert [(c.dataset, c.metric) for c in table.columns] == [
        (d, m) for d in ("toyderm", "chest_x&ray") for m in ("accuracy", "macro_f1")
    ]
    plain = shown(lay_out(select(opened(two)[0], shots=["full"]), Layout(metrics=("accuracy",))))
    printed = shown(table)
    assert list(printed)[:2] == [("majority class",), ("zero-shot",)]
    assert printed["vip",][0] == plain["vip",][1]
    assert printed["zero-shot",][0] == plain["zero-shot",][0]
    assert re.search("training split.*zero-shot", table.caption)
    assert {e.rank for line in table.entries for e in line} >= {1, 2}


def test_preset_ablation(two: Path) -> None:
    table = made(two, "ablation")
    assert table.heads == ("context", "merge")
    assert [row.cells for row in table.rows if row.kind == "method"] == [
        ("on", "attention"),
        ("off", "attention"),
        ("on", "mean"),
    ]
    with pytest.raises(TableError, match="variants"):
        preset("ablation", select(opened(two)[0], methods=["vip", "coop"]), Layout(), ())


def test_preset_fewshot(two: Path) -> None:
    table = made(two, "fewshot")
    assert [c.shots for c in table.columns] == [0, 1, 4, "full"]
    printed = shown(table)
    for column in range(1, 4):
        each = [printed[d, "vip"][column] for d in ("toyderm", "chest_x&ray")]
        assert printed[AVERAGE, "vip"][column] == pytest.approx(np.mean(each))
    i = [row.cells for row in table.rows].index((AVERAGE, "vip"))
    assert table.entries[i][1].sd is None
    assert "unweighted" in table.caption


def test_preset_knowledge(four: Path) -> None:
    table = made(four, "knowledge")
    assert [row.cells for row in table.rows] == [
        ("majority class", ""),
        ("class names", "zero-shot"),
        ("symptoms", "symptoms-mean"),
    ]
    base, better = table.entries[1][0], table.entries[2][0]
    assert base.mean is not None
    assert better.mean is not None
    assert better.gain == better.mean - base.mean > 0
    assert f"(+{100 * better.gain:.1f})" in render(table, "github")
    assert re.search("brackets.*zero-shot", table.notes[-1])


def test_preset_knowledge_of_a_trained_method(two: Path) -> None:
    """Figure 3 of ViP: the same method on its symptoms and on other texts."""
    cells, load = opened(two)
    cells = select(cells, methods=["zero-shot", "vip", "vip[merge=mean]"])
    records = {}
    for cell, record in cells.done():
        value = record.to_dict()
        if cell.method == "vip[merge=mean]":
            value["cell"]["method"] = "vip (useless knowledge)"
            value["data"]["knowledge"] = "useless"
        if cell.method != "zero-shot":
            value["provenance"]["method"]["needs"] = ["symptoms"]
        records[record.key] = Record.of(value)
    cells = cells_of(list(records.values()), planned(list(records.values())))
    table = lay_out(*preset("knowledge", cells, Layout(), ()), load)
    assert [row.cells for row in table.rows if row.kind == "method"] == [
        ("class names", "zero-shot"),
        ("symptoms", "vip"),
        ("useless", "vip"),
    ]
    own, other = table.entries[2][0], table.entries[3][0]
    assert own.gain is None  # trained on images, too: no knowledge alone
    assert own.mean is not None
    assert other.mean is not None
    assert other.gain == other.mean - own.mean
    with pytest.raises(TableError, match="differ"):
        preset("knowledge", select(opened(two)[0], methods=["vip", "zero-shot"]), Layout(), ())


def test_presets_take_other_flags(two: Path) -> None:
    table = made(two, "comparison", metrics=("auroc",))
    assert [c.metric for c in table.columns] == ["auroc", "auroc"]
    with pytest.raises(UsageError, match=r"'compare'.*'comparison'"):
        preset("compare", opened(two)[0], Layout(), ())


@pytest.mark.parametrize(
    ("rows", "cols", "expected"),
    [
        (("method",), ("shots", "metric"), "toyderm, chest_x&ray"),
        (("method",), ("dataset", "metric"), "shots to --rows"),
        (("method",), ("dataset", "shots"), "accuracy, macro_f1"),
    ],
)
def test_nothing_is_averaged_to_fit(
    two: Path, rows: tuple[str, ...], cols: tuple[str, ...], expected: str
) -> None:
    with pytest.raises(TableError, match="--rows or --cols") as caught:
        lay_out(opened(two)[0], Layout(rows=rows, cols=cols))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"rows": ("dataset",)},
        {"rows": ("method", "shots")},
        {"rows": ("method", "lr")},
        {"cols": ()},
        {"aggregate": "se"},
        {"highlight": "worst"},
    ],
)
def test_layouts_that_are_none(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Layout(**fields)


def test_every_shape_has_the_same_numbers(two: Path) -> None:
    cells = opened(two)[0]
    plain = _numbers(lay_out(cells, Layout()))
    for rows, cols in (
        (("dataset", "method"), ("metric", "shots")),
        (("metric", "shots"), ("dataset", "method")),
        (("shots", "dataset", "metric"), ("method",)),
    ):
        table = lay_out(cells, Layout(rows=rows, cols=cols))
        assert _numbers(table) == plain
        for name in FORMATS:
            assert render(table, name)


def _numbers(table: Table) -> dict[str, Any]:
    rows = csv.DictReader(io.StringIO(render(table, "csv")))
    return {
        repr([row[k] for k in ("method", "kind", "dataset", "metric", "shots")]): row
        for row in rows
    }


@pytest.mark.parametrize("aggregate", SPREADS)
def test_deviation_and_interval_are_never_confused(two: Path, aggregate: str) -> None:
    cells, load = opened(two)
    layout = Layout(metrics=("accuracy",), aggregate=aggregate)
    table = lay_out(select(cells, datasets=["toyderm"]), layout, load)
    printed = render(table, "text")
    assert ("±" in printed) == (aggregate == "sd")
    assert bool(re.search(r"\d to \d", printed)) == aggregate.startswith("ci-")
    assert ("standard deviation" in table.caption) == (aggregate == "sd")
    assert ("95 % confidence interval" in table.caption) == aggregate.startswith("ci-")
    if aggregate.startswith("ci-"):
        place = Where("toyderm", "toy-clip", 4)
        found = interval(Pairing(cells, load), "vip", place, "accuracy", aggregate)
        i = [row.label for row in table.rows].index("vip")
        entry = table.entries[i][[c.shots for c in table.columns].index(4)]
        assert (entry.low, entry.high) == (found.low, min(1, found.high))


def test_what_has_no_interval_says_why(tmp_path: Path) -> None:
    cells, load = opened(folder(tmp_path, seeds=(1, 2), shots=(4,), n=60))
    table = lay_out(cells, Layout(aggregate="ci-both"), load)
    assert any(re.search("interval.* 6 ", n) for n in table.notes)
    assert "3 seeds" in " ".join(table.notes)
    one = select(cells, methods=["vip"], seeds=[1])
    with pytest.raises(TableError, match=r"--aggregate ci-seeds: 1 seed "):
        lay_out(one, Layout(aggregate="ci-seeds"), load)


def test_significance(two: Path) -> None:
    cells, load = opened(two)
    cells = select(cells, datasets=["toyderm"])
    layout = Layout(metrics=("accuracy",), highlight="significant")
    table = lay_out(cells, layout, load)
    j = [c.shots for c in table.columns].index(4)
    bold = {r.label for r, line in zip(table.rows, table.entries, strict=True) if line[j].rank == 1}
    methods = ["coop", "vip", "vip[context=off]", "vip[merge=mean]"]
    place = Where("toyderm", "toy-clip", 4)
    assert bold == unbeaten(Pairing(cells, load), methods, place, "accuracy")
    assert "vip" in bold
    assert "coop" not in bold
    assert any(re.search("Holm.* 6 ", note) for note in table.notes)
    assert "significantly" in render(table, "github")
    # The zero-shot column has one method: nothing to be better than.
    assert all(line[0].rank is None for line in table.entries)
    few = lay_out(select(cells, seeds=[1, 2]), layout, load)
    assert all(entry.rank is None for line in few.entries for entry in line)
    assert any("3 columns" in n for n in few.notes)
    ece = unbeaten(Pairing(cells, load), methods, place, "ece")
    assert ece


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert {name for name, _ in attrs} <= {"colspan", "scope", "href"}
        assert dict(attrs).get("href", GLOSSARY) == GLOSSARY
        self.found.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_hostile_names_in_html() -> None:
    hostile = '<script>alert("1")</script>&amp;\u202e'
    page = Elements()
    page.feed(render(comparison([make(hostile, 4, 1), make("b", 4, 1, dataset="<b>")]), "html"))
    assert set(page.found) <= {
        *("figure", "table", "caption", "thead", "tbody", "tr", "th", "td", "figcaption", "p"),
        *("a", "b", "u"),
    }
    assert '<script>alert("1")</script>&amp;\\u202e' in page.text


@pytest.mark.parametrize(
    "document",
    ["{article}", "[twocolumn]{article}", "[runningheads]{llncs}", "[conference]{IEEEtran}"],
)
def test_every_preset_fits_its_column(four: Path, tmp_path: Path, document: str) -> None:
    program = shutil.which("pdflatex") or pytest.skip("no LaTeX is installed")
    needed = f"{re.findall('{(.*)}', document)[0]}.cls"
    if subprocess.run(["kpsewhich", needed], capture_output=True, check=False).returncode:
        pytest.skip(f"no {needed} is installed")
    own = ("base-to-new", "transfer")  # of runs under a protocol of that kind
    tables = [render(made(four, name), "latex") for name in PRESETS if name not in own]
    tables.append(render(made(four, "comparison", highlight="significant"), "latex"))
    tables.append(render(made(four, "comparison", aggregate="ci-both"), "latex"))
    head = rf"\documentclass{document}\usepackage{{booktabs}}"
    body = "\n\\clearpage\n".join(tables)
    text = f"{head}\\begin{{document}}\n{body}\\end{{document}}\n"
    (tmp_path / "t.tex").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [program, "-halt-on-error", "-interaction=nonstopmode", "t.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


def test_the_cost_of_a_table_grows_no_faster_than_its_records(tmp_path: Path) -> None:
    def seconds(datasets: int) -> float:
        records = [
            make(f"m{m}", shots, seed, dataset=f"d{d}")
            for m in range(20)
            for d in range(datasets)
            for shots in (1, 2, 4, 8, 16)
            for seed in range(10)
        ]
        folder = tmp_path / str(datasets)
        with Store(folder) as store:
            store.add_many((record, None) for record in records)
            store.save_plan(planned(records))
        started = time.process_time()  # whoever else uses the machine
        with Store(folder, readonly=True) as store:
            cells = cells_of(store.records(history=False), store.plan())
            assert render(lay_out(cells, Layout()), "github")
        return time.process_time() - started

    # Ten times the records; their square would be a hundred times.
    assert seconds(10) < 40 * seconds(1)


def test_the_command(cli: Cli, two: Path) -> None:
    done = cli("table", two, "--preset", "ablation", "--datasets", "toyderm", "--format", "csv")
    assert done.returncode == 0, done.stderr
    found = {row["method"] for row in csv.DictReader(io.StringIO(done.stdout))}
    assert found == {"majority class", "vip", "vip[context=off]", "vip[merge=mean]"}
    refused = cli("table", two, "--rows", "method", "--cols", "shots")
    assert refused.returncode == 2
    assert "--datasets" in refused.stderr
