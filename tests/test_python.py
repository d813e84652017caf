"""The package from Python: a script on standard input, then its results in this process."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import vipbench
from tests import warm
from tests.conftest import Cli
from vipbench.results import Store, StoreError

CLASSES = ("dark lesion", "pale lesion")
BOOM = """
from vipbench.api import Method


class Boom(Method):
    name = "boom"
    kind = "TF"

    def prepare(self, support):
        raise RuntimeError("it went off")

    def forward(self, x):
        return x[:, :2]


class Flat(Method):
    name = "flat"
    kind = "TF"

    def forward(self, x):
        return x[:, :2]
"""
# No `if __name__ == "__main__":`, and neither torch nor pandas before the run.
SYMPTOMS = {"dark lesion": ["a deep colour"], "pale lesion": ["a light colour"]}
SCRIPT = f"""
import sys
import vipbench

assert not {{"torch", "pandas"}} & set(sys.modules), "import vipbench is slow"
symptoms = {SYMPTOMS}
methods = ["zero-shot", "ncm", {{"name": "vip", "label": "ours", "epochs": 1}}, "boom", "flat"]
given = dict(datasets="csv:table/study.csv", backbones="tiny-clip", shots=[2], out="out",
             symptoms=symptoms, views="none", plugins_dir="plugins")
planned = vipbench.plan(methods, seeds=range(3), **given)
assert not list(__import__("pathlib").Path("out").rglob("*"))
results = vipbench.run(methods, seeds=range(3), **given)
assert "torch" not in sys.modules
print(results.table())
print(results)
print(planned.state.value_counts().to_dict(), len(results.failed))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (images := folder / "table").mkdir()
    (folder / "plugins").mkdir()
    (folder / "plugins" / "boom.py").write_text(BOOM)
    draws, rows = np.random.default_rng(0), ["path,label,split"]
    for number in range(24):
        label = number % 2
        pixels = draws.integers(0, 90, (48, 48, 3), np.uint8) + np.uint8(150 * label)
        Image.fromarray(pixels).save(images / f"{number}.png")
        split = "train" if number < 12 else "test" if number < 20 else "val"
        rows.append(f"{number}.png,{CLASSES[label]},{split}")
    (images / "study.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def ran(project: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-"],
        input=SCRIPT,
        capture_output=True,
        text=True,
        cwd=project,
        env={**environment, warm.COLD: "1"},  # it looks at what is imported
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def results(project: Path, ran: object) -> vipbench.Results:
    return vipbench.Results(project / "out")


def test_a_script_on_standard_input(ran: subprocess.CompletedProcess[str]) -> None:
    assert "{'to do': 13} 3" in ran.stdout
    assert re.search("10 .*3 failed", ran.stdout)
    assert "ours" in ran.stdout
    # Progress and notes are no output.
    assert "went off" in ran.stderr
    assert "3 cells" in ran.stderr
    assert "note: " not in ran.stdout


def test_results_of_a_folder(results: vipbench.Results, project: Path, tmp_path: Path) -> None:
    frame = results.frame()
    assert len(frame) == 13
    assert set(frame.method) == {"zero-shot", "ncm", "ours", "boom", "flat"}
    first = results.failed[0]
    assert (first.method, first.shots, len(results.failed)) == ("boom", 2, 3)
    assert "went off" in first.error

    table = results.table(metrics="accuracy", methods=["zero-shot", "ncm"])
    assert "ncm" in str(table)
    assert "ours" not in str(table)
    assert table.to_latex().startswith("\\begin{table}")
    assert table._repr_html_() == table.to_html()
    assert "| ncm" in table.to_markdown()
    entries = table.to_frame()
    ncm = frame[frame.method == "ncm"].accuracy.mean()
    assert entries[entries.method == "ncm"]["mean"].tolist() == [pytest.approx(ncm)]
    with pytest.raises(vipbench.UsageError, match=r"nosuch.*ncm"):
        results.table(methods="nosuch")

    found = results.compare("ncm", "zero-shot", shots=2, population="seeds")
    low, high = found.interval
    assert low <= found.difference <= high
    assert (0 <= found.p <= 1, found.n, found.n_seeds) == (True, 8, 3)
    assert "ncm" in str(found)
    several = results.compare("ncm", ["zero-shot", "ours"], population="seeds")
    assert [one.claim.b for one in several] == ["zero-shot", "ours"]
    with pytest.raises(vipbench.UsageError, match=r"2 comparisons.*zero-shot.*ours"):
        _ = several.p

    before = set(project.rglob("*"))
    figure = results.plot("bars", aggregate="ci-seeds")
    assert isinstance(figure, Figure)
    assert "tiny-clip" in vars(figure)["caption"]
    assert vars(figure)["_repr_png_"]().startswith(b"\x89PNG")
    assert before == set(project.rglob("*"))
    page = results.leaderboard(tmp_path / "board.html")
    assert "ours" in page.read_text()


@pytest.mark.parametrize(
    ("given", "facts"),
    [
        ({"methods": 3}, ["methods", "3", "int"]),
        ({"methods": {"label": "x"}}, ["name"]),
        ({"datasets": [b"x"]}, ["datasets", "bytes"]),
        ({"backbones": None, "datasets": object()}, ["datasets", "object"]),
        ({"symptoms": 3}, ["symptoms", "3", "int"]),
        ({"symptoms": {"a": [object()]}}, ["symptoms", "object"]),
        ({"method": "vip"}, ["method", "methods"]),
        ({"shots": 0}, ["shots", "0"]),
        ({"seeds": {1, 2}}, ["{1, 2}", "list"]),
        ({"out": 3}, ["out", "3"]),
        ({"out": __file__}, ["out", "test_python.py"]),
    ],
)
def test_arguments_that_are_refused(
    given: dict[str, object], facts: list[str], tmp_path: Path
) -> None:
    with pytest.raises(vipbench.UsageError) as error:
        vipbench.run(**{"methods": "ncm", "out": tmp_path / "out", **given})
    assert all(fact in str(error.value) for fact in facts), error.value
    assert issubclass(vipbench.UsageError, ValueError)
    with pytest.raises(vipbench.UsageError, match="nowhere"):
        vipbench.Results(tmp_path / "nowhere")


def test_models(results: vipbench.Results, project: Path, tmp_path: Path) -> None:
    with pytest.raises(vipbench.UsageError, match=r"method \('zero-shot', 'ncm', 'ours', 'flat'\)"):
        results.model()
    with pytest.raises(vipbench.UsageError, match=r"seed \(0, 1, 2\)"):
        results.model("ours")
    with pytest.raises(vipbench.UsageError, match=r"boom"):
        results.model("boom")
    model = results.model(method="ours", seed=1)
    assert model.class_names == CLASSES
    frame = results.frame()
    key = frame[(frame.method == "ours") & (frame.seed == 1)].key.item()
    with Store(project / "out", readonly=True) as store:
        predictions = store.predictions(key)
    assert predictions is not None
    paths = [project / "table" / name for name in predictions.ids]
    scores = model.scores(paths)
    assert list(scores.columns) == [*CLASSES]
    assert np.abs(scores.to_numpy() - predictions.scores).max() < 1e-5
    assert np.abs(model.scores(paths[3]).to_numpy() - predictions.scores[3]).max() < 1e-5
    names = model.predict(paths)
    assert names.tolist() == [CLASSES[i] for i in predictions.scores.argmax(1)]
    opened = [Image.open(path) for path in paths]
    for images in (opened, [np.asarray(i) for i in opened], np.stack([*map(np.asarray, opened)])):
        assert model.predict(images).tolist() == names.tolist()
    assert len(model.predict(project / "table")) == 24
    # What reads no support set learned nothing.
    assert len(results.model("flat", seed=1).predict(paths)) == len(paths)
    shares = model.explain(paths[0])
    assert sorted(shares.symptom) == ["a deep colour", "a light colour"]
    assert shares["class"].iloc[0] == names[0]
    with pytest.raises(vipbench.UsageError, match="ncm"):
        results.model("ncm", seed=1).explain(paths[0])
    for bad, fact in (
        (3, "int"),
        ([], "image"),
        (tmp_path, str(tmp_path)),
        ("no.png", "no.png"),
    ):
        with pytest.raises(vipbench.UsageError, match=fact):
            model.predict(bad)

    from vipbench.engine.explain.exported import export

    files = export(project / "out", tmp_path / "prompts").files
    rows = csv.DictReader((tmp_path / "prompts" / "index.csv").read_text().splitlines())
    (name,) = (row["file"] for row in rows if row["key"] == key)
    (file,) = (f for f in files if f.name == name)
    loaded = vipbench.load_model(file)
    assert loaded.predict(paths).tolist() == names.tolist()
    assert np.abs(loaded.scores(paths).to_numpy() - predictions.scores).max() < 1e-5
    with pytest.raises(vipbench.UsageError, match="exist"):
        vipbench.load_model(tmp_path / "no.safetensors")
    of_plugin = tmp_path / "plugin.safetensors"
    of_plugin.write_bytes(file.read_bytes().replace(b'\\"vip\\"', b'\\"vap\\"'))
    with pytest.raises(vipbench.UsageError, match=r"method 'vap'.*plugins_dir"):
        vipbench.load_model(of_plugin)


def test_a_call_holds_what_it_asked_for(
    project: Path, ran: object, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    given: dict[str, object] = {
        "datasets": "csv:table/study.csv",
        "backbones": "tiny-clip",
        "views": "none",
    }
    given |= {"symptoms": SYMPTOMS, "plugins_dir": Path("plugins"), "out": Path("out")}
    results = vipbench.run("ncm", shots=2, seeds=[0, 1], quiet=True, **given)
    assert capfd.readouterr() == ("", "")
    assert len(results.frame()) == 2
    assert not results.failed
    assert "zero-shot" not in str(results.table())
    monkeypatch.chdir("/")
    assert "ncm" in str(results.table())


def test_an_interrupt_keeps_finished_cells(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cells are run one by one, each longer than it takes to see that the first is stored."""
    monkeypatch.chdir(project)
    out = tmp_path / "out"
    given = {"datasets": "csv:table/study.csv", "backbones": "tiny-clip", "symptoms": SYMPTOMS}
    given |= {"views": "none", "quiet": True, "shots": [1, 2, 4]}
    stop = threading.Event()

    def interrupt() -> None:
        while not stop.wait(0.05):
            with contextlib.suppress(StoreError), Store(out, readonly=True) as store:
                if store.status():
                    os.kill(os.getpid(), signal.SIGINT)
                    return

    watch = threading.Thread(target=interrupt)
    watch.start()
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):
            vipbench.run(["vip[epochs=60]", "coop[epochs=60]"], seeds=range(4), out=out, **given)
    finally:
        stop.set()
        watch.join()
    assert signal.getsignal(signal.SIGINT) is before
    assert 0 < len(vipbench.Results(out).frame()) < 24


def test_a_run_outlives_its_working_directory(project: Path, ran: object, cli: Cli) -> None:
    moved = project.parent / "moved-out"
    (project / "out").rename(moved)
    try:
        again = cli("run", "--suite", moved / "suite.yaml", "--no-retry")
        assert ": 0 to do, " in again.stdout, again.stderr
        checked = cli("verify", moved, "--rerun", "1")
        assert "1 identical" in checked.stdout, checked.stdout + checked.stderr
        (project / "table").rename(project / "gone")
        bundle = moved / "run.zip"
        made = cli("export", moved, "--bundle", "-o", bundle)
        (project / "gone").rename(project / "table")
        assert made.returncode == 0, made.stderr
        assert "study" in made.stdout
        with zipfile.ZipFile(bundle) as archive:
            whole = b"".join(archive.read(name) for name in archive.namelist())
            splits = json.loads(archive.read("splits.json"))
        assert len(splits["study"]["test"]["labels"]) == 8
        for text in (str(project), str(moved), "table/"):
            assert text.encode() not in whole
    finally:
        moved.rename(project / "out")


def test_the_suite_of_a_bundle_names_no_path_in_its_protocol() -> None:
    from vipbench.cli.commands.export import _public_suite
    from vipbench.runspec.run import RunSpec

    datasets = ("csv:/secret/a.csv", "csv:/secret/b.csv")
    protocol = {"name": "domain-shift", "source": datasets[0]}
    spec = RunSpec.parse(
        {
            "datasets": datasets,
            "protocol": {**protocol, "classes": {datasets[1]: {"x": "y"}}},
            "images": {datasets[0]: "/secret/images"},
        }
    )
    named = {source: {"name": source[-5]} for source in datasets}
    texts: dict[str, dict[str, list[str]]] = {name: {"from_files": []} for name in "ab"}
    public = _public_suite(spec, texts, named, {})[0]
    assert "secret" not in public.to_yaml()
    assert public.protocol.source == public.datasets[0] != public.datasets[1]
