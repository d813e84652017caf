from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vipbench.symptoms
from vipbench.errors import UsageError
from vipbench.symptoms import SymptomError, load_symptoms, parse_symptoms, shipped_symptoms
from vipbench.symptoms.check import check

CLASSES = ("blue nevus", "melanoma")
GOOD = {"blue nevus": ["even colour"], "melanoma": ["jagged edge", "several colours"]}
DATA = Path(vipbench.symptoms.__file__).parent / "data"


def parse(content, classes=CLASSES):
    return parse_symptoms(json.dumps(content), classes)


def test_binds_by_name_in_the_order_of_the_classes(tmp_path):
    path = tmp_path / "symptoms.json"
    turned = {"MELANOMA": GOOD["melanoma"], " Blue_Nevus ": ["even\n colour "]}
    path.write_text(json.dumps(turned), encoding="utf-8-sig")  # a byte order mark is fine
    found = load_symptoms(path, CLASSES)
    assert found.symptoms == {
        "blue nevus": ("even colour",),
        "melanoma": ("jagged edge", "several colours"),
    }
    assert list(found.symptoms) == list(CLASSES)
    assert found.warnings == []
    assert found == parse(GOOD), "the digest is of the content, not of the file"
    assert found.sha256 != parse({**GOOD, "melanoma": ["jagged edge"]}).sha256


words = st.text("xyzq", min_size=1, max_size=5)


@given(
    st.lists(words, min_size=1, max_size=5, unique=True).flatmap(
        lambda names: st.fixed_dictionaries(
            {f"class {n}": st.lists(st.text("abc ", min_size=1), min_size=1) for n in names}
        )
    ),
    st.randoms(),
)
def test_order_and_case_of_the_file_never_matter(content, rng):
    names = list(content)
    if any(not s.strip() for texts in content.values() for s in texts):
        with pytest.raises(SymptomError, match="blank"):
            parse(content, names)
        return
    turned = list(content.items())
    rng.shuffle(turned)
    again = parse({k.upper().replace(" ", "_"): v for k, v in turned}, names)
    assert again == parse(content, names)
    for name in names:
        assert again.symptoms[name] == tuple(" ".join(s.split()) for s in content[name])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**GOOD, "blue nev": ["x"]}, r"'blue nev' \(.*'blue nevus'"),
        ({"melanoma": ["x"]}, r"'blue nevus'\. .*'blue nevus'"),
        (
            {"melanom": ["x"], "blue nevus": ["x"]},
            r"'melanoma'; .*'melanom' \(.*'melanoma'",
        ),
        ({}, "'blue nevus', 'melanoma'"),
        ([GOOD], r"a list; "),
        ({**GOOD, "melanoma": []}, "'melanoma': "),
        ({**GOOD, "melanoma": "dark"}, r"'melanoma': .*str"),
        ({**GOOD, "melanoma": {"a": 1}}, "'melanoma': .*dict"),
        ({**GOOD, "melanoma": ["dark", 3]}, "'melanoma': .*2 .*3"),
        ({**GOOD, "melanoma": ["dark", None]}, "'melanoma': .*2 .*None"),
        ({**GOOD, "melanoma": [" \n"]}, "'melanoma': .*1 .*blank"),
        ({**GOOD, "melanoma": ["x" * 501]}, "1 .*501 .*500"),
        ({**GOOD, "melanoma": ["x"] * 501}, "501 symptoms.* 500"),
        ({**GOOD, "Melanoma": ["x"]}, r"'Melanoma' .*\('?.*'melanoma' and 'Melanoma'\)"),
    ],
)
def test_bad_content(content, message):
    with pytest.raises(SymptomError, match=message) as caught:
        parse(content)
    assert isinstance(caught.value, UsageError)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"melanoma": ["a"], "melanoma": ["b"]}', "'melanoma' twice"),
        ('{"melanoma": ["a"],\n "x" ["b"]}', "JSON: .*line 2, column 6"),
        ("", "JSON: .*line 1, column 1"),
        ("[" * 100_000, "nested|JSON"),
        ("null", "NoneType"),
    ],
)
def test_bad_json(text, message):
    with pytest.raises(SymptomError, match=message):
        parse_symptoms(text, CLASSES)


def test_bad_files(tmp_path):
    with pytest.raises(SymptomError, match=r"gone\.json'"):
        load_symptoms(tmp_path / "gone.json", CLASSES)
    with pytest.raises(SymptomError, match="directory"):
        load_symptoms(tmp_path, CLASSES)
    path = tmp_path / "latin.json"
    path.write_bytes(json.dumps({"naevus": ["größe"]}, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(SymptomError, match=r"latin\.json'.*UTF-8 .*\(byte 15\)"):
        load_symptoms(path, CLASSES)
    path.write_bytes(b" " * (1024 * 1024 + 1))
    with pytest.raises(SymptomError, match="1024 KiB"):
        load_symptoms(path, CLASSES)


def test_classes_that_cannot_be_reported_apart():
    with pytest.raises(SymptomError, match="'A b', 'a_b'"):
        parse({"a b": ["x"]}, ("A b", "a_b"))


@pytest.mark.parametrize(
    "symptom",
    ["a melanoma", "MELANOMA!", "two melanomas", "the_melanoma", "melanoma's edge"],
)
def test_the_class_name_in_its_own_symptom_is_a_leak(symptom):
    with pytest.raises(SymptomError, match=f"'melanoma': .*'{symptom}'"):
        parse({**GOOD, "melanoma": ["dark", symptom]})


@pytest.mark.parametrize(
    ("name", "symptom"),
    [
        ("blue nevus", "a Blue-Nevus of the skin"),
        ("normal, benign", "normal benign tissue"),
        ("leukocytes", "a round leukocyte"),
        ("femur-left", "left of it the femur left"),
        ("mass", "several masses"),
        ("blue nevus", "one of those blue nevi"),
        ("melanocytic nevi", "a melanocytic nevus"),
        ("keratosis", "many keratoses"),
    ],
)
def test_leaks_in_other_spellings(name, symptom):
    with pytest.raises(SymptomError, match="leak"):
        parse({name: [symptom], "other": ["x"]}, (name, "other"))


@pytest.mark.parametrize(
    ("name", "symptom"),
    [
        ("melanoma", "amelanomatous"),
        ("normal", "abnormal edge"),
        ("mass", "massive"),
        ("A", "an A1"),
    ],
)
def test_parts_of_words_are_no_leak(name, symptom):
    assert parse({name: [symptom], "other": ["x"]}, (name, "other")).warnings == []


def test_single_words_of_a_longer_name_warn():
    found = parse({**GOOD, "blue nevus": ["steel blue all over", "the nevuses are even"]})
    assert len(found.warnings) == 2
    assert re.search("'steel blue all over' .*'blue'", found.warnings[0])
    assert "holds 'nevus'" in found.warnings[1]
    names = ("no sign of disease", "disease")
    quiet = parse({names[0]: ["there is no edge of any kind"], names[1]: ["x"]}, names)
    assert quiet.warnings == []  # small words say nothing about a class


def test_other_classes_and_repeats_warn():
    found = parse({"blue nevus": ["no melanoma", "Even colour"], "melanoma": ["even colour"]})
    assert any(re.search("'no melanoma' .*'melanoma'", w) for w in found.warnings)
    assert any(re.search("2 .*'blue nevus', 'melanoma'", w) for w in found.warnings)
    twice = parse({**GOOD, "melanoma": ["dark", "dark"]})
    assert re.search("'dark' .*2 .*'melanoma'", *twice.warnings)


def test_official_files_load_with_their_warnings(shared):
    official = shared / "data/official"
    skin = load_symptoms(official / "descriptors_skin.json", ("melanoma", "nevus"))
    assert [len(v) for v in skin.symptoms.values()] == [4, 4]
    lungs = load_symptoms(official / "descriptors_pneumonia.json", ("normal_lung", "Pneumonia"))
    assert any("'normal'" in w for w in lungs.warnings)


@pytest.mark.parametrize("path", sorted(DATA.glob("*.json")), ids=lambda p: p.stem)
def test_shipped_sets_are_sound(path):
    stored = json.loads(path.read_text(encoding="utf-8"))
    found = load_symptoms(path, tuple(stored))
    assert found.warnings == []
    assert len(stored) >= 2
    assert min(map(len, stored.values())) >= 3
    assert shipped_symptoms(path.stem, tuple(stored)) == found.symptoms


def test_shipped_sets_share_no_sentence_with_the_official_files(shared):
    def sentences(path: Path) -> set[str]:
        texts = [t for v in json.loads(path.read_text(encoding="utf-8")).values() for t in v]
        return {re.sub(r"\W+", " ", t).strip().casefold() for t in texts}

    official = set().union(*map(sentences, (shared / "data/official").glob("descriptors_*.json")))
    assert len(official) == 16
    for path in DATA.glob("*.json"):
        assert not sentences(path) & official


def test_no_set_is_shipped_for_a_name_that_is_a_path():
    assert shipped_symptoms("../data/pneumonia", ("a", "b")) is None
    assert shipped_symptoms("nothing", ("a", "b")) is None


def test_a_check_names_every_finding_at_once(tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    texts = {
        "nevus": ["a nevus seen five times", "a nevus again"],
        "melanoma": [],
        "keratosis": ["a brown surface", "a brown surface"],
    }
    file.write_text(json.dumps(texts))
    with pytest.raises(SymptomError, match="'melanoma': "):
        load_symptoms(file, list(texts))
    found = check(load_symptoms(file, list(texts), strict=False))
    kinds = [one.kind for one in found]
    assert kinds == ["leak", "leak", "duplicate", "too-few"]
    assert re.search("'melanoma' .*0.* 2 ", found[-1].text)
    file.write_text(json.dumps({name: [] for name in texts}))
    found = check(load_symptoms(file, list(texts), strict=False))
    assert [one.kind for one in found] == ["too-few"] * 3
