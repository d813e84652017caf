"""Descriptions: which texts a method that needs them is given, and when it is given none."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.conftest import Cli
from vipbench.datasets.synthderm import CLASS_NAMES, SynthDerm
from vipbench.runspec.run import RunSpec
from vipbench.symptoms import SymptomError, shipped_descriptions, shipped_symptoms


def test_synthderm_ships_fifty_different_descriptions_with_the_class_name() -> None:
    found = shipped_descriptions("synthderm", CLASS_NAMES)
    assert found is not None
    assert list(found) == list(CLASS_NAMES)
    for name, texts in found.items():
        assert len(set(texts)) == 50
        assert all(name in text for text in texts)
        others = [other for other in CLASS_NAMES if other != name]
        assert not any(other in text for text in texts for other in others)
    assert SynthDerm().descriptions == found


def test_descriptions_are_no_symptoms_and_other_datasets_have_none() -> None:
    assert shipped_symptoms("descriptions/synthderm", CLASS_NAMES) is None
    assert shipped_descriptions("pneumonia", ("normal", "pneumonia")) is None
    with pytest.raises(SymptomError, match="classes"):
        shipped_descriptions("synthderm", CLASS_NAMES[1:])


def test_biomedcoop_is_impossible_without_descriptions_even_where_there_are_symptoms(
    cli: Cli, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for split in ("train", "val", "test"):
        for label, shade in (("pale", 200), ("dark", 20)):
            folder = data / split / label
            folder.mkdir(parents=True)
            for i in range(2):
                _image(
                    folder / f"{split}-{i}.png", shade + 9 * i + 3 * ("train val test".find(split))
                )
    symptoms = tmp_path / "symptoms.json"
    symptoms.write_text(json.dumps({"pale": ["a light tone"], "dark": ["a deep tone"]}))
    flags = ("--backbones", "tiny-clip", "--shots", "1", "--seeds", "1")
    done = cli(
        *("run", "--dry-run", "--methods", "zero-shot,biomedcoop,cupl"),
        *("--datasets", f"folder:{data}", "--symptoms", str(symptoms), *flags),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search("'biomedcoop' .*descriptions", done.stdout)
    assert re.search("'cupl' .*descriptions", done.stdout)

    texts = tmp_path / "texts.json"
    named = {"pale": ["a pale square", "pale, all of it"], "dark": ["a dark square", "dark tones"]}
    texts.write_text(json.dumps(named))
    run = ("run", "--methods", "cupl,biomedcoop", "--datasets", f"folder:{data}", *flags)
    done = cli(*run, "--descriptions", str(texts), "--out", "results", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'data' has 2" in done.stdout
    assert "cupl" in (tmp_path / "results" / "results.csv").read_text()
    saved = RunSpec.from_yaml(tmp_path / "results" / "suite.yaml")
    assert saved.descriptions == {"*": texts}

    # The full form says what it holds: symptoms never stand in for descriptions.
    document = {"format": "vipbench-symptoms", "version": 1, "kind": "symptoms", "classes": named}
    symptoms.write_text(json.dumps(document))
    done = cli(*run, "--descriptions", str(symptoms), "--dry-run", cwd=tmp_path)
    assert done.returncode == 2
    assert "--symptoms" in done.stderr
    symptoms.write_text(json.dumps(document | {"kind": "descriptions"}))
    both = ("--descriptions", str(texts), "--symptoms", str(symptoms))
    done = cli(*run, *both, "--dry-run", cwd=tmp_path)
    assert done.returncode == 2
    assert "'data'" in done.stderr


def test_biomedcoop_runs_on_synthderm_and_its_table_says_untuned(cli: Cli, tmp_path: Path) -> None:
    methods = "biomedcoop[epochs=1],biomedcoop[n_prompts=51],cupl"
    done = cli(
        *("run", "--methods", methods, "--datasets", "synthderm", "--backbones", "tiny-clip"),
        *("--shots", "1", "--seeds", "1", "--views", "none", "--out", "results"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = (tmp_path / "results" / "table.md").read_text()
    assert re.search(r"epochs=1\\\]: .*untuned", table)
    assert "51 descriptions" in table
    assert re.search("50 .*'velmorid nevoma'", table)


def _image(path: Path, shade: int) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64), (shade, shade, shade)).save(path)
