"""What the documentation says is so: names, defaults, code blocks, links."""

from __future__ import annotations

import csv
import dataclasses
import inspect
import io
import re
import shlex
import subprocess
import sys
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import vipbench
from tests.conftest import Cli
from vipbench import hookspecs
from vipbench.api import Method
from vipbench.engine.arguments import Fields
from vipbench.engine.planning.hparams import hparam_ranges, range_text
from vipbench.plugins.registry import load_registry
from vipbench.runspec.run import RunSpec
from vipbench.symptoms import load_symptoms

REPO = Path(__file__).resolve().parents[1]
DOCS = REPO / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *REPO.glob("*.md"), *REPO.glob("plugins/**/*.md")])


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)


def succeed(cli: Cli, command: str, cwd: Path) -> str:
    program, *args = shlex.split(command)
    assert program == "vipbench"
    done = cli(*args, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_hook_is_documented() -> None:
    page = (DOCS / "plugins.md").read_text() + (DOCS / "tracking.md").read_text()
    hooks = [name for name in vars(hookspecs) if name.startswith(("register_", "on_"))]
    assert len(hooks) == 6
    for hook in hooks:
        assert f"### `{hook}(" in page


def test_every_attribute_of_a_method_is_documented() -> None:
    table = (DOCS / "plugins.md").read_text()
    declared = vars(Method)["__annotations__"].items()
    public = {name for name, kind in declared if "ClassVar" in str(kind)} - {"HParams"}
    documented = {
        word
        for row in re.findall(r"^\| (`.*?) \|", table, re.M)
        for word in re.findall(r"`(\w+)`", row)
    }
    assert documented == public


RANGES = {
    "": "",
    "from 1": " ≥1",
    "from 0": " ≥0",
    "above 0": " >0",
    "from 0, at most 1": ", 0 to 1",
    "from 0, below 1": ", 0 to below 1",
}


def test_every_method_and_hyperparameter_is_documented() -> None:
    page = (DOCS / "methods.md").read_text()
    sections = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    common = {
        name: " " + limit if limit else ""
        for names, limits in re.findall(
            r"^\| (`.*?`) \| (.*?) ?\|", sections["Common hyperparameters"], re.M
        )
        for name, limit in zip(
            re.findall(r"`(\w+)`", names), cycle(limits.split(", ")), strict=False
        )
    }
    for name, found in load_registry().methods.items():
        assert name in sections, f"docs/methods.md has no section '{name}'"
        method, section = found.target, sections[name]
        assert f"{method.kind} ·" in section
        text = re.sub(r"\s+", " ", section)
        shown = dict(re.findall(r"`(\w+)=([^`]*)`", text))
        fields = {f.name: f.default for f in dataclasses.fields(method.HParams)}
        assert shown.keys() == fields.keys(), f"docs/methods.md, section '{name}'"
        for field, default in fields.items():
            limit = RANGES[range_text(hparam_ranges(method)[field])]
            if field in common:  # its range stands in the common table alone
                assert common[field] == limit
                limit = ""
            written = (
                re.escape(f"`{field}={default!r}`") + "( ≥[\\d.]+| >[\\d.]+|, 0 to (?:below )?1)?"
            )
            found_limits = {m[1] or "" for m in re.finditer(written, text)}
            assert limit in found_limits <= {"", limit}, f"section '{name}': `{field}={default!r}`"


def test_every_dataset_is_documented() -> None:
    page = (DOCS / "datasets.md").read_text()
    for name in load_registry().datasets:
        assert f"### {name}\n" in page


def test_the_card_and_the_symptom_file_of_the_page_load(tmp_path: Path) -> None:
    (card,), (symptoms,) = (blocks(DOCS / "datasets.md", kind) for kind in ("yaml", "json"))
    for name in ("NORMAL", "PNEUMONIA"):
        for i in range(10):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / name / f"{i}.png")
    (tmp_path / "card.yaml").write_text(card)
    dataset, _ = load_registry().dataset(f"folder:{tmp_path}")
    assert [len(split) for split in dataset.load(None).values()] == [12, 2, 6]
    assert dataset.class_names == ("normal lung", "pneumonia")
    assert dataset.templates == ("a chest X-ray of {}.",)
    (tmp_path / "symptoms.json").write_text(symptoms)
    loaded = load_symptoms(tmp_path / "symptoms.json", dataset.class_names)
    assert dataset.symptoms == loaded.symptoms
    assert dataset.licence == "CC BY 4.0"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_tutorial_and_readme_hold_the_very_file() -> None:
    text = (REPO / "plugins" / "proto_clip.py").read_text()
    assert blocks(DOCS / "tutorial-method.md", "python")[0] == text
    assert text in blocks(REPO / "README.md", "python")
    assert len(text.splitlines()) < 40


@pytest.mark.parametrize(
    ("page", "file"), [("adding-a-dataset", "ward"), ("adding-a-backbone", "thumbnail")]
)
def test_the_pages_on_adding_hold_the_very_files(page: str, file: str) -> None:
    text = (REPO / "plugins" / f"{file}.py").read_text()
    assert blocks(DOCS / f"{page}.md", "python") == [text]
    # The same code runs in test_the_plugin_pages_dataset_and_backbone_run.
    assert any(text.endswith(block) for block in blocks(DOCS / "plugins.md", "python"))


def test_citation_and_changelog_name_this_version() -> None:
    citation = yaml.safe_load((REPO / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == vipbench.__version__
    assert citation["license"] == "Apache-2.0"
    assert f"## [{vipbench.__version__}]" in (REPO / "CHANGELOG.md").read_text()


def test_the_tutorial_letter_by_letter(cli: Cli, tmp_path: Path) -> None:
    page = DOCS / "tutorial-method.md"
    method, search, residual = blocks(page, "python")
    make_folder, first, second, trained = [b.strip() for b in blocks(page, "bash")]

    assert make_folder == "mkdir my-plugins"
    plugins = tmp_path / "my-plugins"
    plugins.mkdir()
    (plugins / "proto_clip.py").write_text(method)
    assert "proto-clip" in succeed(cli, first, tmp_path)

    table = succeed(cli, second, tmp_path)
    assert "proto-clip[alpha=0.9]" in table
    text = succeed(cli, "vipbench table proto-results --format csv --metric accuracy", tmp_path)
    rows = [row for row in csv.DictReader(io.StringIO(text)) if "proto" in row["method"]]
    assert {row["method"] for row in rows} == {"proto-clip", "proto-clip[alpha=0.9]"}
    assert {row["shots"] for row in rows} == {"1", "4", "16"}
    assert all(row["n"] == row["n_expected"] == "2" for row in rows)

    # Section 3: the search goes behind `forward`.
    head, hook = method.split("\n\n@vipbench.hookimpl")
    (plugins / "proto_clip.py").write_text(f"{head}\n{search}\n\n@vipbench.hookimpl{hook}")
    again = succeed(cli, first, tmp_path)
    assert "Nothing to do" not in again  # a changed file runs again
    assert "proto-clip[alpha=0.9] §" in again
    assert "--methods 'proto-clip[alpha=0.9]'" in again

    (plugins / "residual.py").write_text(residual)
    assert "residual" in succeed(cli, trained, tmp_path)


def test_the_plugin_pages_dataset_and_backbone_run(cli: Cli, tmp_path: Path) -> None:
    plugins, data = tmp_path / "plugins", tmp_path / "data"
    plugins.mkdir()
    data.mkdir()
    for number, block in enumerate(blocks(DOCS / "plugins.md", "python")):
        (plugins / f"plugin_{number}.py").write_text(block)
    rng = np.random.default_rng(0)
    lines = []
    for split, count in (("train", 8), ("val", 2), ("test", 6)):
        for label in (0, 1):
            for i in range(count):
                path = f"{split}-{label}-{i}.png"
                grey = rng.integers(0, 60, (16, 16, 3)) + 120 * label
                Image.fromarray(grey.astype(np.uint8)).save(data / path)
                lines.append(f"{path} {label} {split} patient-{split}-{i}")
    (data / "ward.txt").write_text("\n".join(lines))
    done = cli(
        *("run", "--plugins-dir", plugins, "--data-root", data, "--datasets", "ward"),
        *("--backbones", "thumbnail:4", "--methods", "linear-probe,coop"),
        *("--shots", "2", "--seeds", "1", "--out", "results"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "text tower" in done.stdout + done.stderr
    text = succeed(cli, "vipbench table results --format csv --metric accuracy", tmp_path)
    probe = [row for row in csv.DictReader(io.StringIO(text)) if row["method"] == "linear-probe"]
    assert float(probe[0]["mean"]) == pytest.approx(1)


def test_the_python_page_names_every_argument_and_attribute() -> None:
    page = (DOCS / "python.md").read_text()
    public = [getattr(vipbench, name) for name in vipbench.__all__ if name != "__version__"]
    methods = [vars(c)[n] for c in (vipbench.Results, vipbench.Model) for n in vars(c)]
    for found in [*public, *methods]:
        name = getattr(found, "__name__", "")
        if not inspect.isfunction(found) or name.startswith("_") or found is vipbench.hookimpl:
            continue
        assert f"{name}(" in page
        for argument in inspect.signature(found).parameters:
            assert argument == "self" or argument in page, f"docs/python.md: {name}({argument}="
    grid = [*inspect.signature(vipbench.plan).parameters][:6]
    assert {*grid, *Fields.__annotations__} == RunSpec.model_fields.keys()
    for field in RunSpec.model_fields:
        assert f"`{field}`" in page


def test_the_python_blocks_of_the_page_and_the_readme_run(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    guide = blocks(DOCS / "python.md", "python")[0]
    readme = blocks(REPO / "README.md", "python")[0].replace('"vip"', '"ncm"')
    done = subprocess.run(
        [sys.executable, "-"],
        input=f"{readme}\n{guide}\nprint(model)",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search("accuracy .*ncm", done.stdout)
    assert "Model(ncm on synthderm" in done.stdout


def test_each_promise_of_security_names_its_test() -> None:
    promises = (REPO / "SECURITY.md").read_text().partition("## What it cannot do")[0]
    for promise in promises.split("\n- **")[1:]:
        named = re.findall(r"`(tests/[\w/.]+)`", promise)
        assert named, promise
        assert all((REPO / file).exists() for file in named), promise
