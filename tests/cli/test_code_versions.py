"""A plugin that is edited between runs: no number mixes two versions, and old rows are marked."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

import vipbench
from tests.conftest import Cli
from vipbench.results import Store
from vipbench.runspec.run import RunSpec

PLUGIN = '''
"""Nearest class mean, or the furthest."""
from dataclasses import dataclass
import torch
import vipbench
from vipbench import api

class Means(api.Method):
    """Distance to the mean of each class."""
    name = "means"
    kind = "TF"
    needs = frozenset()

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """power: of the distance."""
        power: float = 1.0

    def prepare(self, support):
        x, y = support.plain, support.labels
        self.means = torch.stack([x[y == c].mean(0) for c in range(support.n_classes)])

    def forward(self, x):
        return SIGN * torch.cdist(x, self.means) ** self.hparams.power

@vipbench.hookimpl
def register_methods(register):
    register(Means)
'''
OLD, NEW = PLUGIN.replace("SIGN", "1"), PLUGIN.replace("SIGN", "-1")
VARIANT = "means[power=2]"


def run(folder: Path, toy: Path, methods: str, seeds: str, **more: Any) -> None:
    from vipbench.cli.commands.run import run_command

    spec = {"methods": methods, "datasets": [f"npz:{toy / 'toy.npz'}"], "backbones": "tiny-clip"}
    spec |= {"shots": "1,2", "seeds": seeds, "views": "none", "validation": "none"}
    spec |= {"out": folder / "results", "plugins_dir": folder / "plugins", **more}
    assert run_command(RunSpec.parse(spec)) == 0


@pytest.fixture(scope="module")
def edited(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rows of one plugin file and one of vipbench's own, three seeds; then the file is edited
    and seed 1 of the first row is run again."""
    folder = tmp_path_factory.mktemp("edited")
    (folder / "plugins").mkdir()
    (folder / "plugins" / "means.py").write_text(OLD)
    run(folder, toy, f"linear-probe,means,{VARIANT}", "1,2,3")
    (folder / "plugins" / "means.py").write_text(NEW)
    run(folder, toy, "means", "1")
    return folder


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_row_never_averages_two_versions_of_a_plugin(cli: Cli, edited: Path) -> None:
    folder = edited / "results"
    table_rows = rows(cli("table", folder, "--format", "csv", "--metric", "accuracy").stdout)
    means = [row for row in table_rows if row["method"] == "means"]
    assert [(r["state"], r["mean"], r["n"], r["n_expected"]) for r in means] == [
        ("unfinished", "", "1", "3")
    ] * 2
    # The seeds that are left alone are of the old version, and stay out.
    alone = rows(cli("table", folder, "--format", "csv", "--seeds", "2,3").stdout)
    assert {r["n"] for r in alone if r["method"] == "means"} == {"0"}
    for name in ("table.md", "table.tex"):
        assert re.search(r"(–|--) \(1 of 3\)", (folder / name).read_text())
    refused = cli("compare", "means", "linear-probe", folder)
    assert refused.returncode == 2
    assert re.search(r"\b1 of .*\b3\b", refused.stderr)
    assert "`vipbench run --methods means " in refused.stderr
    assert "--shots 1,2 --seeds 2,3 " in refused.stderr
    plotted = cli("plot", folder, "-o", edited / "curves.svg")
    assert "means: 4 records" in (plotted.stdout)


def test_a_row_of_older_code_is_marked_in_every_output(cli: Cli, edited: Path) -> None:
    folder = edited / "results"
    forms = {form: cli("table", folder, "--format", form).stdout for form in FORMS}
    for form, shown in FORMS.items():
        assert shown in forms[form], form
        assert "linear-probe §" not in forms[form]
    by_method = {r["method"]: r["older_code"] for r in rows(forms["csv"])}
    assert by_method == {
        "majority class": "false", "linear-probe": "false", "means": "false", VARIANT: "true",
    }  # fmt: skip
    caption = json.loads(forms["json"])["caption"]
    assert "older" in caption
    assert "means.py" in caption
    assert VARIANT in (folder / "results.csv").read_text()  # whole, and so not superseded

    noted = cli("compare", VARIANT, "linear-probe", folder).stdout
    assert re.search("Note: .*older", noted)
    for kind in ("fewshot", "bars", "confusion"):
        figure = edited / f"{kind}.svg"
        done = cli("plot", folder, "--kind", kind, "-o", figure)
        assert done.returncode == 0, done.stderr
        assert "older" in done.stdout
        assert "§" in figure.read_text()


FORMS = {
    "text": f"{VARIANT} §",
    "github": r"means\[power=2\] §",
    "latex": r"means{[}power=2{]} \S{}",
    "html": f"{VARIANT} §",
    "csv": "older_code",
    "json": '"older_code": true',
}


def test_the_named_command_makes_the_row_again(
    cli: Cli, edited: Path, toy: Path, tmp_path: Path
) -> None:
    shutil.copytree(edited / "results", tmp_path / "results")
    for marked in ("the plugin's code is older", "count as not yet run"):
        table = cli("table", "results", cwd=tmp_path).stdout
        sentence = table[table.index(marked) :]
        command = re.search(r"`(vipbench run [^`]+)`", sentence)
        assert command is not None
        words = [
            word.replace("PATH", str(toy / "toy.npz")) if word != "DIR" else edited / "plugins"
            for word in shlex.split(command[1])[1:]
        ]
        assert words[-2:] == ["--out", "results"]
        done = cli(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    table = cli("table", "results", "--format", "json", cwd=tmp_path).stdout
    assert "older" not in table
    assert {entry["state"] for row in json.loads(table)["rows"] for entry in row["entries"]} == {
        "done"
    }


def test_data_frames_and_exports_leave_superseded_records_out(cli: Cli, edited: Path) -> None:
    folder = edited / "results"
    found = vipbench.load_results(folder)
    means = found[found.method == "means"]
    assert means.seed.tolist() == [1, 1]
    assert means.plugin_sha256.nunique() == 1
    every = vipbench.load_results(folder, superseded=True)
    gone = every[every.superseded]
    assert len(every) == len(found) + 6
    assert every.superseded.dtype == bool
    assert sorted(gone.seed.tolist()) == [1, 1, 2, 2, 3, 3]
    assert set(gone.method) == {"means"}
    assert len(pd.read_csv(folder / "results.csv")) == len(found)

    out = edited / "records.csv"
    done = cli("export", folder, "-o", out)
    assert "6 superseded" in done.stdout
    assert "--superseded" in done.stdout
    assert set(pd.read_csv(out).key) == set(found.key)
    assert cli("export", folder, "-o", out, "--superseded").returncode == 0
    assert set(pd.read_csv(out).key) == set(every.key)

    note = cli("table", folder).stdout
    named = re.search(r"2 records .*`(vipbench table [^`]+)`", note)
    assert named is not None
    listed = cli(*shlex.split(named[1])[1:]).stdout
    for key in gone.key:
        assert key[:12] in listed
    assert "method.code: " in listed
    assert not any(key[:12] in listed for key in found.key)


def test_the_leaderboard_mixes_no_versions(cli: Cli, edited: Path) -> None:
    done = cli("leaderboard", edited / "results", "-o", edited / "site")
    assert done.returncode == 0, done.stderr
    page = (edited / "site" / "index.html").read_text()
    match = re.search(r'<script[^>]*id="data"[^>]*>(.*?)</script', page, re.S)
    assert match is not None
    data: Mapping[str, Any] = json.loads(match[1])
    lines = {(data["rows"][e[3]]["label"], e[4]): e for e in data["entries"]}
    assert {label for label, _ in lines} == {"linear-probe", "means", f"{VARIANT} §"}
    entry = lines["means", 1]
    assert (entry[6], len(entry[9])) == (3, 1)  # expected, cells
    notes = [data["notes"][i] for i in entry[7]]
    assert any("older" in note for note in notes)
    assert all(bounds == 0 for bounds in entry[8])


def test_other_datasets_and_a_return_to_the_old_code(
    cli: Cli, edited: Path, toy: Path, tmp_path: Path
) -> None:
    """A row is of one code on all its datasets; what is the present code the last run says."""
    shutil.copytree(edited, tmp_path / "w")
    folder = tmp_path / "w"
    shutil.copy(toy / "toy.npz", tmp_path / "again.npz")
    shutil.copy(toy / "toy.yaml", tmp_path / "again.yaml")
    (folder / "plugins" / "means.py").write_text(NEW)
    run(folder, toy, "means", "1,2,3", datasets=[f"npz:{tmp_path / 'again.npz'}"])
    table_rows = rows(cli("table", folder / "results", "--format", "csv", "--average").stdout)
    states = {(r["dataset"], r["state"]) for r in table_rows if r["method"] == "means"}
    assert states == {
        ("toy", "unfinished"),
        ("again", "done"),
        ("average over datasets", "unfinished"),
    }

    (folder / "plugins" / "means.py").write_text(OLD)
    run(folder, toy, f"means,{VARIANT}", "1,2,3")
    table_rows = rows(
        cli("table", folder / "results", "--format", "csv", "--datasets", "toy").stdout
    )
    assert {(r["method"], r["state"], r["older_code"]) for r in table_rows} == {
        (label, "done", "false") for label in ("majority class", "linear-probe", "means", VARIANT)
    }
    with Store(folder / "results", readonly=True) as store:
        assert {r.cell.dataset for r in store.records() if r.key in store.superseded()} == {
            "toy", "again",
        }  # fmt: skip


def test_an_edited_backbone_plugin_runs_again(
    cli: Cli, toy: Path, tmp_path: Path, repo: Path
) -> None:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    source = (repo / "plugins" / "thumbnail.py").read_text()
    command = ("run", "--methods", "ncm", "--datasets", f"npz:{toy / 'toy.npz'}", "--views", "none",
               "--backbones", "thumbnail:4", "--plugins-dir", plugins, "--shots", "1",
               "--seeds", "1", "--validation", "none", "--out", tmp_path / "out")  # fmt: skip
    accuracies = []
    for returned in ("pixels.flatten(1)", "pixels.flatten(1).mean().expand(len(pixels), self.dim)"):
        (plugins / "thumbnail.py").write_text(source.replace("pixels.flatten(1)", returned))
        done = cli(*command)
        assert done.returncode == 0, done.stderr
        assert "1 to do" in done.stdout
        accuracies += vipbench.load_results(tmp_path / "out").accuracy.tolist()
    assert accuracies == [1.0, 0.5]


@pytest.mark.parametrize(("unit", "table_rows"), [("image", "8 .*12"), ("group", "4 .*6")])
def test_a_table_says_that_the_validation_split_has_too_few(
    cli: Cli, tmp_path: Path, unit: str, table_rows: str
) -> None:
    """Two patients of each class in the validation split, with two images each."""
    lines = ["path,label,split,group"]
    for split, patients in (("train", 3), ("val", 2), ("test", 3)):
        for label, grey in (("dark", 40), ("bright", 200)):
            for i in range(2 * patients):
                name = f"{split}-{label}-{i}.png"
                Image.new("RGB", (28, 28), (grey + i, grey, len(split) * i)).save(tmp_path / name)
                lines.append(f"{name},{label},{split},{split}-{label}-{i // 2}")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    shots = {"image": "6", "group": "3"}[unit]
    done = cli(
        *(
            "run",
            "--methods",
            "ncm",
            "--datasets",
            f"csv:{tmp_path / 'table.csv'}",
            "--shots",
            shots,
        ),
        *("--seeds", "1", "--backbones", "tiny-clip", "--views", "none", "--validation", "k"),
        *("--shots-unit", unit, "--out", tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    printed = " ".join(done.stdout.split())
    assert f" {unit}s " in printed
    assert re.search(f"{table_rows} .*{shots} shots", printed)
