"""Several sets of symptoms and templates in one run: a row for each label."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

import vipbench
from vipbench import UsageError
from vipbench.cli import main
from vipbench.datasets.synthderm import CLASS_NAMES, SynthDerm
from vipbench.engine.cluster.cut import cut
from vipbench.engine.planning.loading import TextSet, choices
from vipbench.results import Record, Store
from vipbench.results.records.rerun_command import own_label, run_command
from vipbench.runspec.run import RunSpec
from vipbench.runspec.text_sets import key
from vipbench.symptoms import SymptomError, load_templates

OTHERS = {name: [f"a sign of kind {i}", "a round spot"] for i, name in enumerate(CLASS_NAMES)}
GIVEN: dict[str, Any] = {
    "methods": ["zero-shot", "symptoms-mean", "ncm"],
    "datasets": "synthderm",
    "backbones": "tiny-clip",
    "shots": 1,
    "seeds": 1,
    "views": "none",
}
SYMPTOMS = ["symptoms-mean · ours", "symptoms-mean · gpt"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> vipbench.Results:
    """Two sets of symptoms, one of templates; of a dataset's own texts nothing."""
    folder = tmp_path_factory.mktemp("sets")
    (folder / "gpt.json").write_text(json.dumps(OTHERS))
    symptoms = {"ours": dict(SynthDerm().symptoms or {}), "gpt": folder / "gpt.json"}
    return vipbench.run(
        **GIVEN, symptoms=symptoms, templates={"plain": ["{}."]}, out=folder / "out"
    )


def records_of(results: vipbench.Results) -> dict[str, Record]:
    """Row's label -> its record."""
    with Store(results.folder, readonly=True) as store:
        return {record.cell.method: record for record in store.records()}


def command(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_row_for_each_set_that_a_method_reads(ran: vipbench.Results) -> None:
    assert not ran.failed
    records = records_of(ran)
    assert set(records) == {"ncm", "zero-shot · plain", *SYMPTOMS}
    shown = str(ran.table())
    assert all(label in shown for label in records)
    ours, gpt = (records[label] for label in SYMPTOMS)
    assert ours.data.symptoms_sha256 != gpt.data.symptoms_sha256
    assert "a sign of kind 0" in gpt.data.class_texts
    assert own_label(ours) == "symptoms-mean"
    command_line = run_command(ours)
    assert "--symptoms ours=FILE" in command_line
    assert "--templates" not in command_line
    assert "--templates plain=FILE" in run_command(records["zero-shot · plain"])
    assert ran.compare(*SYMPTOMS).n == 300
    figure = ran.plot("bars")
    assert figure.axes


def test_a_label_changes_no_key(ran: vipbench.Results, tmp_path: Path) -> None:
    symptoms, templates = tmp_path / "s.json", tmp_path / "t.txt"
    symptoms.write_text(json.dumps(OTHERS))
    templates.write_text("{}.\n")
    plain = vipbench.plan(
        **GIVEN, symptoms={"*": symptoms, "own": SynthDerm().symptoms}, out=ran.folder
    )
    # A set beside texts without a label.
    assert list(plain.method) == ["zero-shot", "symptoms-mean", "symptoms-mean · own", "ncm"]
    records = records_of(ran)
    named = (SYMPTOMS[1], SYMPTOMS[0], "ncm")
    assert list(plain.key)[1:] == [records[label].key for label in named]
    assert list(plain.state)[1:] == ["done"] * 3
    plain = vipbench.plan(**GIVEN | {"methods": "zero-shot"}, templates=templates, out=ran.folder)
    assert list(plain.key) == [records["zero-shot · plain"].key]


@pytest.mark.parametrize(
    ("symptoms", "templates", "given", "rows"),
    [
        ([], [], [], [{}]),
        (["a", "b"], [], [], [{"symptoms": "a"}, {"symptoms": "b"}]),
        (["a"], [], ["symptoms", "templates"], [{}, {"symptoms": "a"}]),
        (
            ["a", "b"],
            ["c"],
            ["templates"],
            [{"symptoms": name} | more for name in "ab" for more in ({}, {"templates": "c"})],
        ),
        (["a"], ["a", "b"], [], [{"symptoms": "a", "templates": "a"}, {"templates": "b"}]),
    ],
)
def test_combinations(
    symptoms: list[str], templates: list[str], given: list[str], rows: list[dict[str, str]]
) -> None:
    sets = {
        name: TextSet({} if name in symptoms else None, None, ("{}",) * (name in templates) or None)
        for name in dict.fromkeys([*symptoms, *templates])
    }
    assert choices(sets, {*given}, {"text", "symptoms"}) == rows
    assert choices(sets, {*given}, set()) == [{}]


def test_suite_parts_and_bundle_keep_the_sets(
    ran: vipbench.Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = ran.folder / "suite.yaml"
    spec = RunSpec.from_yaml(suite)
    assert set(spec.symptoms) == {key("ours"), key("gpt")}
    assert all(piece.spec.symptoms == spec.symptoms for piece in cut(spec, 3))
    assert command("run", "--suite", suite, "--dry-run") == 0
    assert "4: 0 to do, 4 done" in capsys.readouterr().out
    assert command("verify", ran.folder, "--rerun", 4) == 0
    assert command("export", ran.folder, "--bundle", "-o", tmp_path / "b.zip") == 0
    with zipfile.ZipFile(tmp_path / "b.zip") as bundle:
        inside = [name for name in bundle.namelist() if name.startswith(("symptoms", "templates"))]
        assert len(inside) == 3
    assert command("reproduce", tmp_path / "b.zip", "--out", tmp_path / "again", "--yes") == 0
    assert SYMPTOMS[1] in capsys.readouterr().out


def test_labels_and_datasets_of_flags(tmp_path: Path) -> None:
    spec = RunSpec(datasets=("synthderm", "npz:skin.npz"))
    flags = ["ours=a", "ours=skin=b", "gpt=synthderm=c", "synthderm=d", "e"]
    found = spec.merge({"symptoms": flags})
    assert {k: str(v) for k, v in found.symptoms.items()} == {
        key("ours"): "a",
        key("ours", "skin"): "b",
        key("gpt", "synthderm"): "c",
        "synthderm": "d",
        "*": "e",
    }
    assert found.as_values()["symptoms"]["ours"] == {"*": "a", "skin": "b"}
    assert RunSpec.from_yaml_text(found.to_yaml()).symptoms == found.symptoms
    # What is of a dataset goes with it.
    fewer = found.merge({"datasets": "synthderm"})
    assert set(fewer.symptoms) == set(found.symptoms) - {key("ours", "skin")}
    for flag in ("a,b=x", "a · b=x", "synthdrem=x", "=x"):
        with pytest.raises(UsageError):
            spec.merge({"symptoms": [flag]})
    with pytest.raises(UsageError, match="ours"):
        spec.merge({"symptoms": ["ours=a", "ours=b"]})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "got 0"),
        ("a photo\n", "'a photo'"),
        ("[1]", "got '1'"),
        ('["{}"', "not JSON"),
        ("{} {}\n", "{} {}"),
        ("{}\n{}\n", "twice"),
    ],
)
def test_wrong_templates(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "t"
    file.write_text(text)
    with pytest.raises(SymptomError) as caught:
        load_templates(file)
    assert says in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_method_that_takes_the_first_of_several_templates_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.txt").write_text("a scan of a {}.\n{}.\n")
    rows = "zero-shot,zero-shot[templates=all]"
    grid = ("--methods", rows, "--datasets", "synthderm", "--backbones", "tiny-clip")
    files = ("--templates", tmp_path / "t.txt", "--out", tmp_path / "out")
    assert command("run", *grid, *files, "--dry-run") == 0
    said = capsys.readouterr()
    notes = [line for line in (said.out + said.err).splitlines() if line.startswith("note: ")]
    (note,) = (line for line in notes if "2 templates" in line)
    assert "zero-shot takes" in note
