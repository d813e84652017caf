"""The leaderboard in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.browser import Browser, find_chromium
from tests.conftest import Cli
from tests.results.samples import make, record_dict, scored
from vipbench.results.records.metrics import compute_metrics
from vipbench.results.records.predictions import Predictions
from vipbench.results.records.record import Record
from vipbench.results.store.store import Collection, Store
from vipbench.results.store.submissions import submitted_by

HOSTILE = "</script><script>document.title='broken'</script>"
LOADED = "document.querySelectorAll('#boards tbody tr').length"


def row(method: str, shots: int, seed: int, accuracy: float, dataset: str, kind: str) -> Record:
    entry = record_dict(method, shots, seed, dataset=dataset, metrics={"accuracy": accuracy})
    entry["metrics"] |= {"auroc": 1 - accuracy, "ece": accuracy / 10}
    entry["provenance"]["method"] |= {"kind": kind, "plugin": "vipbench"}
    if method == "transclip":
        entry["provenance"]["method"]["needs"] = ["test_images"]
    return Record.of(entry)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets, 150 methods on one of them; a dispute, a failure, a hostile name."""
    folder = tmp_path_factory.mktemp("board")
    records = [
        row(method, shots, seed, base + 0.01 * seed + 0.02 * shots, dataset, kind)
        for dataset in ("toyderm", "chest")
        for method, base, kind in (
            ("vip", 0.6, "TP"),
            ("coop", 0.5, "TP"),
            ("probe", 0.3, "AD"),
            ("transclip", 0.7, "AD"),
        )
        for shots in (1, 4)
        for seed in (1, 2, 3)
    ]
    records += [row(f"m{i}", 4, 1, i / 1000, "chest", "FT") for i in range(150)]
    records.append(row(HOSTILE, 4, 1, 0.2, "toyderm", "TF"))
    record, predictions = scored(1, "disputed")
    other = Predictions(predictions.ids, None, predictions.labels, -predictions.scores)
    metrics = compute_metrics(other.labels, other.scores, record.data.class_names)
    theirs = Record.of(record.to_dict() | {"metrics": metrics})
    with Collection(folder) as store:
        store.submit(
            [
                *((r, None) for r in records),
                (make("failed", 4, 1, error="ValueError"), None),
                (record, predictions),
                (submitted_by(theirs, "anna"), other),
            ]
        )
    return folder


@pytest.fixture(scope="module")
def site(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vipbench.cli.commands.leaderboard import leaderboard_command

    out = tmp_path_factory.mktemp("site")
    assert leaderboard_command([folder], out, "Toy results") == 0
    return out / "index.html"


@pytest.fixture(scope="module")
def started() -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium on this machine (or set CHROMIUM to its program)")
    with Browser(program) as browser:
        yield browser


@pytest.fixture
def page(started: Browser, site: Path) -> Iterator[Browser]:
    """The opened page; no test may make it complain, or ask for anything but itself."""
    started.problems.clear()
    started.requests.clear()
    started.open(site)
    yield started
    assert started.problems == []
    assert set(started.requests) == {site.as_uri()}


def choose(page: Browser, control: str, value: str) -> None:
    page.js(
        f"document.getElementById('{control}').value = '{value}';"
        "document.getElementById('controls').dispatchEvent(new Event('input'))"
    )


def column(page: Browser, name: str, section: str = "methods") -> list[str]:
    found = page.js(
        f"[...document.querySelectorAll('[data-section={section}] tbody :is(th, td).{name}')]"
        ".map((c) => c.textContent)"
    )
    return [str(text) for text in found]


def test_filters(page: Browser) -> None:
    assert page.js("document.getElementById('status').textContent") == "169 of 169 entries"
    choose(page, "dataset", "toyderm")
    assert set(column(page, "dataset")) == {"toyderm"}
    choose(page, "kind", "TP")
    choose(page, "shots", "4")
    assert column(page, "method") == ["vip", "coop"]
    assert column(page, "rank") == ["1", "2"]
    assert column(page, "value") == ["70.0 ±1.0", "60.0 ±1.0"]
    choose(page, "metric", "3")  # AUROC, made to run the other way
    assert column(page, "method") == ["coop", "vip"]
    choose(page, "query", "VI")
    assert column(page, "method") == ["vip"]
    page.js("document.querySelector('#controls [type=reset]').click()")
    assert page.js("new Promise((d) => setTimeout(() => d(" + LOADED + "), 50))") > 100


def test_what_stands_apart_and_what_has_no_number(page: Browser) -> None:
    choose(page, "dataset", "toyderm")
    assert set(column(page, "method", "transductive")) == {"transclip"}
    assert "transclip" not in column(page, "method")
    rows = dict(zip(column(page, "method"), column(page, "value"), strict=True))
    assert re.fullmatch(r"\d+\.0 … \d+\.0", rows["disputed note"])
    assert rows["failed note"] == "–"


def test_sorting(page: Browser) -> None:
    choose(page, "dataset", "chest")
    choose(page, "shots", "4")

    def press(name: str) -> list[float]:
        page.js(f"document.querySelector('[data-section=methods] [data-sort={name}]').click()")
        return [float(text.split(" ")[0]) for text in column(page, "value")]

    down = press("value")
    assert down == sorted(down, reverse=True)
    assert len(down) == 100  # the rest is a press away
    assert page.js("document.querySelector('th.value').ariaSort") == "descending"
    up = press("value")
    assert up == sorted(up)
    assert page.js("document.activeElement.dataset.sort") is None
    page.js("document.querySelector('.more').click()")
    assert len(column(page, "value")) == 153
    press("method")
    names = column(page, "method")
    assert names == sorted(names)


def test_provenance_by_keyboard(page: Browser) -> None:
    choose(page, "dataset", "toyderm")
    choose(page, "query", "vip")
    choose(page, "shots", "4")
    # Tab from the last control: the table's heads, then its numbers.
    page.js("document.querySelector('#controls [type=reset]').focus()")
    for _ in range(20):
        page.press("Tab", 9)
        if page.js("document.activeElement.className") == "value":
            break
    page.press("Enter", 13, "\r")
    assert page.js("document.getElementById('provenance').open")
    text = page.js("document.getElementById('provenance').innerText")
    keys = [r["key"] for r in (record_dict("vip", 4, s) for s in (1, 2, 3))]
    for key in keys:
        assert key in text
    assert page.js("document.getElementById('command').textContent") == (
        "vipbench run --methods vip --datasets toyderm --backbones toy-clip --views per-epoch "
        "--sampler nested --validation 'min(k,4)' --selection last --precision fp32 --shots 4 "
        "--seeds 1,2,3"
    )
    for entry in ("2.12.0", "n_ctx", record_dict()["provenance"]["backbone"]["fingerprint"][:8]):
        assert entry in text
    page.press("Escape", 27)
    assert not page.js("document.getElementById('provenance').open")
    assert page.js("document.activeElement.className") == "value"


def test_a_hostile_name_is_text(page: Browser) -> None:
    choose(page, "query", "script")
    assert column(page, "method") == [HOSTILE]
    page.js("document.querySelector('button.value').click()")
    assert page.js("document.title") == "Toy results"
    assert page.js("document.scripts.length") == 2


def test_the_policy_holds(page: Browser) -> None:
    """An inline script and a request are stopped: this test alone makes the page complain."""
    page.js(
        "const s = document.createElement('script'); s.textContent = \"document.title='in'\";"
        "document.body.append(s)"
    )
    refused = page.js("fetch('https://example.org/').then(() => 'sent', () => 'refused')")
    assert (page.js("document.title"), refused) == ("Toy results", "refused")
    assert any("Content Security Policy" in text for text in page.problems)
    page.problems.clear()
    page.requests[:] = [url for url in page.requests if url.startswith("file:")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_dark_and_printed(page: Browser, scheme: str) -> None:
    page.prefer(scheme)
    theme = "document.documentElement.dataset.theme"
    page.js(f"new Promise((done) => setInterval(() => {theme} === '{scheme}' && done(), 10))")
    background = page.js("getComputedStyle(document.body).backgroundColor")
    light = np.mean([int(v) for v in re.findall(r"\d+", background)]) > 128
    assert light == (scheme == "light")
    page.size(390, 800, mobile=True)
    assert page.js("document.documentElement.scrollWidth") <= 390
    page.js("document.querySelector('button.value').click()")
    assert page.js("document.getElementById('provenance').scrollWidth") <= 390
    page.js("document.getElementById('provenance').close()")
    page.size(1280, 900)
    if scheme == "light":
        assert page.pdf().startswith(b"%PDF")
        assert page.js(LOADED) == 169  # all of it is printed


def test_curves(page: Browser) -> None:
    choose(page, "dataset", "toyderm")
    choose(page, "shots", "4")  # which the curves, running over shots, pass over
    titles = page.js("[...document.querySelectorAll('figcaption')].map((c) => c.textContent)")
    assert titles == ["Accuracy: toyderm · toy-clip"]
    names = page.js("[...document.querySelectorAll('.legend li')].map((c) => c.textContent)")
    assert {"vip", "coop", "probe"} <= set(names)
    assert "transclip" not in names
    points = page.js(
        "[...document.querySelectorAll('figure title')].map((c) => c.textContent)"
        ".filter((t) => t.startsWith('vip'))"
    )
    assert points == ["vip, 1 shot: 64.0", "vip, 4 shots: 70.0"]
    assert page.js("document.querySelectorAll('figure svg path.curve').length") >= 3


def test_the_command(cli: Cli, folder: Path, tmp_path: Path) -> None:
    done = cli("leaderboard", folder, "-o", "site", "--title", "A & B", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("site/index.html: 169 rows, ")
    assert re.search("submissions.* 1 cell", done.stdout)
    assert "<h1>A &amp; B</h1>" in (tmp_path / "site" / "index.html").read_text()
    empty = tmp_path / "empty"
    Store(empty).close()
    done = cli("leaderboard", empty, cwd=tmp_path)
    assert done.returncode == 2
    assert "records" in done.stderr
