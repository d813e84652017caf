"""Texts that replace the symptoms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vipbench.errors import UsageError
from vipbench.runspec.run import KNOWLEDGE as SUITE_WORDS
from vipbench.runspec.run import RunSpec
from vipbench.symptoms import KNOWLEDGE, load_symptoms, replace_knowledge, shipped_symptoms
from vipbench.symptoms.knowledge import turned

CLASSES = (
    "velmorid nevoma",
    "ombrine lentule",
    "corvane keratule",
    "lutheric angiole",
    "sarnese basalome",
    "tessaric verrucid",
)


def test_words_of_suite_and_package_agree() -> None:
    assert SUITE_WORDS == KNOWLEDGE


@pytest.mark.parametrize("kind", KNOWLEDGE[1:])
def test_each_class_keeps_its_count_and_loses_its_texts(kind: str) -> None:
    own = shipped_symptoms("synthderm", CLASSES)
    assert own is not None
    new = replace_knowledge(own, kind)
    assert {k: len(v) for k, v in new.items()} == {k: len(v) for k, v in own.items()}
    assert not {t for v in own.values() for t in v} & {t for v in new.values() for t in v}
    assert new == replace_knowledge(own, kind)
    if kind != "incorrect":
        texts = [t for v in new.values() for t in v]
        assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(
    ("symptom", "text"),
    [
        ("an asymmetric, lopsided shape", "a symmetric, balanced shape"),
        ("a round outline", "an angular outline"),
        ("a milky blue-white veil", "a transparent black-red veil"),
        ("fine winding blood vessels", "coarse straight blood vessels"),
        ("a veil", "without a veil"),
    ],
)
def test_antonyms(symptom: str, text: str) -> None:
    assert turned(symptom) == text


@given(st.lists(st.text(min_size=1), min_size=1, max_size=90))
def test_any_text_can_be_turned(texts: list[str]) -> None:
    for kind in KNOWLEDGE:
        assert len(replace_knowledge({"a": texts}, kind)["a"]) == len(texts)


def test_a_suite_refuses_other_words() -> None:
    with pytest.raises(UsageError, match="'incorrect'"):
        RunSpec.parse({"knowledge": "incorect"})
    suite = RunSpec.from_yaml(Path(__file__).parents[2] / "benchmarks" / "vip-figure3.yaml")
    assert suite.knowledge == KNOWLEDGE
    assert RunSpec.from_yaml_text(suite.to_yaml()) == suite


def test_the_full_form_tells_its_source_and_an_edit(tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    document = {
        "format": "vipbench-symptoms",
        "version": 1,
        "kind": "symptoms",
        "source": {"by": "model", "images_seen": {"a": 3, "b": 16}},
        "classes": {"a": ["red"], "b": ["blue"]},
    }
    file.write_text(json.dumps(document))
    found = load_symptoms(file, ["b", "a"])
    assert found.images_seen == 16
    assert found.warnings == []
    file.write_text(json.dumps({**document, "sha256": "0" * 64}))
    assert "edited" in load_symptoms(file, ["b", "a"]).warnings[0]
    for key, bad in (("version", 9), ("kind", "x"), ("classes", []), ("source", 1)):
        file.write_text(json.dumps({**document, key: bad}))
        with pytest.raises(UsageError, match=key):
            load_symptoms(file, ["a", "b"])
