"""Figures: what they hold, what their files are, what they refuse."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from tests.conftest import Cli
from tests.results.samples import planned, record_dict
from tests.results.simulated import folder
from vipbench.errors import UsageError
from vipbench.results.figures import KINDS, draw, save
from vipbench.results.figures.curves import places
from vipbench.results.figures.matrices import shares
from vipbench.results.figures.style import COLOURS, looks
from vipbench.results.records.cells import Cells, cells_of
from vipbench.results.records.comparable import TableError
from vipbench.results.records.metrics import compute_metrics
from vipbench.results.records.predictions import Predictions
from vipbench.results.records.record import Record
from vipbench.results.stats import StatsError
from vipbench.results.stats.pairing import select
from vipbench.results.store.store import Store


def opened(path: Path) -> tuple[Cells, Any]:
    with Store(path, readonly=True) as store:
        loaded = {key: store.predictions(key) for key in store.status()}
        return cells_of(store.records(), store.plan()), loaded.get


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = [f"set {i}" for i in range(7)]
    return folder(tmp_path_factory.mktemp("seven"), datasets=names, shots=(1, 4, "full"), n=60)


# Figures of knowledge need rows that differ in it: test_texts_apart.py.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("knowledge", "training")])
@pytest.mark.parametrize("suffix", [".pdf", ".svg", ".png"])
def test_files(seven: Path, tmp_path: Path, kind: str, suffix: str) -> None:
    cells, load = opened(seven)
    if kind != "cd":
        cells = select(cells, datasets=["set 0"])
    before = dict(mpl.rcParams)
    files = []
    matplotlibrc = {"savefig.facecolor": "red", "grid.linewidth": 9, "image.cmap": "gray"}
    for name, settings in (("a", {}), ("b", matplotlibrc)):
        with mpl.rc_context(settings):
            figure, caption = draw(kind, cells, load)
            files.append(save(figure, tmp_path / f"{name}{suffix}").read_bytes())
    # No date, user or path is in it, and nothing of a matplotlibrc in the working directory.
    assert files[0] == files[1]
    assert dict(mpl.rcParams) == before
    assert caption.endswith(".")
    word = b"linear-probe"
    if suffix == ".svg":
        assert re.search(rb"<text[^>]*>[^<]*" + word, files[0])
    if suffix == ".pdf":
        assert b"/Subtype /Type0" in files[0] or b"/Subtype /TrueType" in files[0]
        assert b"/Subtype /Type3" not in files[0]
    if suffix == ".png":
        with Image.open(tmp_path / "a.png") as image:
            assert image.width > 900


def test_curves_hold_the_tables_numbers(seven: Path) -> None:
    cells, load = opened(seven)
    figure, caption = draw("fewshot", select(cells, datasets=["set 0", "set 1"]), load)
    axes = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in axes] == ["set 0", "set 1"]
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["0", "1", "4", "full"]
    found = [
        [record.metrics["accuracy"] for cell, record in cells.done()
         if (cell.dataset, cell.method, cell.shots) == ("set 0", "vip", k)]
        for k in (1, 4, "full")
    ]  # fmt: skip
    computed = [100 * np.mean(v) for v in found]
    assert any(np.allclose(line.get_ydata(), computed) for line in axes[0].lines
               if len(line.get_ydata()) == 3)  # fmt: skip
    zero = next(r.metrics["accuracy"] for c, r in cells.done() if c.method == "zero-shot")
    marks = [line for line in axes[0].lines if list(line.get_xdata()) == [0]]
    assert [mark.get_ydata()[0] for mark in marks] == [pytest.approx(100 * zero)]
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["zero-shot", "coop", "linear-probe", "vip"]
    assert "95 %" in legend.get_title().get_text()
    assert re.search("t distribution.*support sets", caption)
    assert re.search("band .*95 %", caption)
    assert re.search("shots.*full: .*training split; 0: no .*image", caption)


@pytest.mark.parametrize("aggregate", ["sd", "ci-seeds", "ci-images", "ci-both", "none"])
@pytest.mark.parametrize("kind", ["fewshot", "bars"])
def test_a_figures_caption_speaks_of_what_is_drawn(seven: Path, kind: str, aggregate: str) -> None:
    cells, load = opened(seven)
    chosen = select(cells, datasets=["set 0"], shots=[1, 4])
    _, caption = draw(kind, chosen, load, aggregate=aggregate)
    for word in ("brackets", "Columns", " row "):
        assert word not in caption
    drawn = {"fewshot": "s a band", "bars": "s a black line"}[kind]
    assert (drawn in caption) == (aggregate != "none")
    if kind == "bars":
        assert re.search("4 training images .*zero-shot", caption)
        assert "majority" in caption


def test_an_unfinished_entry_is_a_gap(seven: Path) -> None:
    cells, load = opened(seven)
    cells = select(cells, datasets=["set 0"], methods=["vip"])
    gone = next(c.key for c in cells.planned if c.shots == 4)
    records = {key: r for key, r in cells.records.items() if key != gone}
    figure, caption = draw("fewshot", Cells(cells.planned, records), load, aggregate="none")
    line = next(line for line in figure.axes[0].lines if len(line.get_ydata()) == 3)
    assert list(np.isnan(line.get_ydata())) == [False, True, False]
    assert "A gap: " in caption


def test_where_shots_lie() -> None:
    assert places([0, 1, 2, 4, 16, "full"]) == {0: 0, 1: 1, 2: 2, 4: 3, 16: 5, "full": 6}
    assert places(["full"]) == {"full": 1}
    assert places([4, 8]) == {4: 1, 8: 2}


def test_looks_differ_and_are_reported_apart_in_grey() -> None:
    found = looks([str(i) for i in range(35)])
    assert len(set(map(str, found.values()))) == 35
    first = list(found.values())[:7]
    assert len({look.marker for look in first}) == 7
    grey = [
        int(np.dot([int(c[i : i + 2], 16) for i in (1, 3, 5)], [0.3, 0.59, 0.11])) for c in COLOURS
    ]
    assert max(grey) < 190  # visible on white paper


def test_confusion_by_hand() -> None:
    labels = np.array([0, 0, 0, 1])
    scores = np.array([[1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]], dtype=np.float32)
    computed = shares(Predictions(list("abcd"), None, labels, scores), 3)
    np.testing.assert_allclose(computed, [[2 / 3, 0, 1 / 3], [0, 1, 0], [np.nan] * 3])


def test_rows_of_matrices_lie_evenly_above_a_last_row_with_empty_places(seven: Path) -> None:
    cells, load = opened(seven)
    one = select(cells, methods=[next(c.method for c in cells.planned if c.shots)], shots=[4])
    figure, _ = draw("confusion", one, load)
    panels = [axis for axis in figure.axes if axis.images]
    assert len(panels) == 7
    figure.draw_without_rendering()
    tops = sorted({round(axis.get_position().y1, 4) for axis in panels})
    assert len(tops) == 3
    assert tops[1] - tops[0] == pytest.approx(tops[2] - tops[1], abs=2e-3)
    # What lies lowest in each column says what its columns are.
    named = [axis for axis in panels if axis.get_xlabel() == "predicted"]
    assert named == panels[-3:]
    shown = [label for axis in named for label in axis.get_xticklabels()]
    assert all(label.get_visible() for label in shown)


def test_refusals(seven: Path, tmp_path: Path) -> None:
    cells, load = opened(seven)
    few = select(cells, datasets=["set 0", "set 1"])
    with pytest.raises(StatsError, match=r"6 datasets.* 2"):
        draw("cd", few, load)
    with pytest.raises(UsageError, match="'curve'"):
        draw("curve", few, load)
    with pytest.raises(TableError, match=r"28 panels .*--methods"):
        draw("confusion", cells, load)
    with pytest.raises(TableError, match="curves"):
        draw("fewshot", Cells(few.planned, {}), load, aggregate="none")
    with pytest.raises(TableError, match="method"):
        draw("reliability", Cells(few.planned, {}), load)
    figure, _ = draw("cd", cells, load)
    with pytest.raises(UsageError, match=r"\.pdf, \.svg, \.png"):
        save(figure, tmp_path / "f.jpg")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["fewshot", "confusion", "reliability", "bars"])
def test_hostile_names(kind: str, tmp_path: Path) -> None:
    names = ["$\\frac{", "<script>alert(1)</script>", "中文 \x1b[31m", "a_b^c%&", "_hidden"]
    records, loaded = [], {}
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 3
    for name in names:
        value = record_dict(name, 4, 1, dataset="$x$ <b>")
        value["data"]["class_names"] = ["<i>a</i>", "$b", "中"]
        value["data"]["test_counts"] = [10, 10, 10]
        scores = rng.normal(size=(30, 3)).astype(np.float32)
        value["metrics"] = compute_metrics(labels, scores, value["data"]["class_names"])
        records.append(Record.of(value))
        loaded[records[-1].key] = Predictions(list(map(str, range(30))), None, labels, scores)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure, _ = draw(kind, cells_of(records, planned(records)), loaded.get, aggregate="none")
        text = save(figure, tmp_path / "f.svg").read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "$\\frac{" in text
    assert "(U+4E2D)" in text
    assert "_hidden" in text


def test_the_command(cli: Cli, seven: Path, tmp_path: Path) -> None:
    out = tmp_path / "ranks.svg"
    done = cli("plot", seven, "--kind", "cd", "--shots", "4", "-o", out)
    assert done.returncode == 0, done.stderr
    assert re.search("ranks.*Accuracy", done.stdout)
    assert "CD = " in out.read_text()


def test_curves_of_one_seed_have_no_band() -> None:
    one = [Record.of(record_dict("coop", shots, 1)) for shots in (1, 4)]
    cells = cells_of(one, planned(one))
    assert "band" not in draw("fewshot", cells, {}.get)[1]
    with pytest.raises(TableError, match="1 seed "):
        draw("fewshot", cells, {}.get, aggregate="ci-seeds")


def test_training_curves_hold_the_histories() -> None:
    def record(seed: int, history: list[dict[str, float]]) -> Record:
        value = record_dict("coop", 4, seed)
        return Record.of({**value, "history": history})

    first = [{"epoch": float(e), "loss": 3.0 - e, "val_accuracy": 0.25 * e} for e in range(3)]
    second = [{"epoch": float(e), "loss": 2.0 - e / 2} for e in range(3)]
    records = [record(1, first), record(2, second)]
    figure, caption = draw("training", cells_of(records, planned(records)), {}.get)
    axes = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_ylabel() for axis in axes] == ["training loss", "validation accuracy (%)"]
    for axis, expected in zip(axes, ([2.5, 1.75, 1.0], [0.0, 25.0, 50.0]), strict=True):
        [line] = axis.get_lines()
        assert list(line.get_xdata()) == [1, 2, 3]
        np.testing.assert_allclose(line.get_ydata(), expected)
    assert "coop" in caption
    assert "lowest" in caption
    assert "lowest" not in draw("training", cells_of(records[:1], planned(records[:1])), {}.get)[1]
    bare = [record(1, [])]
    with pytest.raises(TableError, match="training"):
        draw("training", cells_of(bare, planned(bare)), {}.get)
