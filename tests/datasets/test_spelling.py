from __future__ import annotations

import random
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vipbench.datasets.reading.spelling import (
    alike,
    clean,
    group_key,
    label_key,
    label_list,
    label_lists,
    missing,
    number,
    one_spelling,
    skeleton,
    split_of,
)

INVISIBLE = ["\u00a0", "\u2009", "\u3000", "\u200b", "\ufeff", "\u2060", "\u00ad", "\ufe0f", "\t"]
WORDS = st.text("abcäöüéñ", min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("split", "names"),
    [
        (
            "train",
            "train TRAIN Training train_set trainset train-images images_train Train.Data trn",
        ),
        ("val", "val VALID Validation dev Dev_Set development validation_data val-split"),
        ("test", "test Testing TEST test_set Test-Images testing_data images.test tst"),
        (None, "trains trainees holdout fold1 normal testis validity developer data set 1 nan"),
    ],
)
def test_names_of_splits(split, names):
    assert {name: split_of(name) for name in names.split()} == dict.fromkeys(names.split(), split)
    assert split_of("Training set\u200b") == "train"


@given(st.text(max_size=12))
def test_cleaning_is_done_at_once_and_leaves_nothing_unseen(text):
    shown = clean(text)
    assert clean(shown) == shown == unicodedata.normalize("NFKC", shown)
    assert shown == " ".join(shown.split())
    assert not any(unicodedata.category(char) in ("Cf", "Cc") for char in shown)
    assert skeleton(shown) == skeleton(text)


@given(st.lists(WORDS, min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_what_nobody_sees_changes_no_label(words, rng: random.Random):
    plain = " ".join(words)
    spelled = "".join(
        rng.choice(["\u00a0", "  ", "\u2003", " \u200b"])
        if char == " "
        else char + rng.choice(["", *"\u200b\u2060\ufeff"])
        for char in unicodedata.normalize(rng.choice(["NFC", "NFD"]), plain)
    )
    assert label_key(rng.choice(INVISIBLE) + spelled) == label_key(plain) == plain


@given(st.integers(0, 10**12), st.integers(0, 6), st.sampled_from(["", ".", ".0", ",0", ".000"]))
def test_one_id_in_many_spellings(value, zeros, tail):
    spelled = "0" * zeros + str(value) + tail
    assert number(spelled) == label_key(spelled) == group_key(spelled) == str(value)
    assert group_key(f"P-{'0' * zeros}{value}") == group_key(f"p-{value}")
    assert group_key(str(value)) != group_key(str(value + 1))


def test_numbers_as_programs_write_them():
    same = {"3": "3 3.0 0003 +3 3,00 3e0 3.0e+00", "100000": "1e5 1.0E+05 100000.0", "-7": "-07"}
    for plain, spellings in same.items():
        assert {number(text) for text in spellings.split()} == {plain}
    assert number("3.50") == "3.5"
    assert number("-0.0") == "0"
    for text in ("", "x3", "3x", "1,234", "3.1.2", "1e999", "three", "3-4", "٣"):
        assert number(text) is None
    # Each of the two parts of such an id counts.
    assert group_key("1-03") == group_key("1-3") != group_key("1-30")
    assert number("1.03") != number("1.3")


@given(st.lists(st.sampled_from(["a", "a\u200b", " a", "b", "01", "1.0", "1", "A"]), max_size=9))
def test_which_spelling_is_kept_does_not_depend_on_the_order(texts):
    spelled = one_spelling(texts, label_key)
    assert spelled == one_spelling(sorted(texts, reverse=True), label_key)
    assert set(spelled.of) == set(texts)
    assert set(spelled.of.values()) <= {"a", "b", "01", "1.0", "1", "A"}
    assert all(len({spelled.of[text] for text in group}) == 1 for group in spelled.merged)


def test_a_lone_spelling_stays_as_it_is():
    assert one_spelling(["0003", "1.0"], group_key).of == {"0003": "0003", "1.0": "1.0"}
    assert one_spelling(["0003", "3.0"], group_key).of == {"0003": "3", "3.0": "3"}


@pytest.mark.parametrize(
    "text", ["", " ", "nan", "NaN", "None", "NULL", "n/a", "<NA>", "\u200b", "-", "?", "–", "n.a."]
)
def test_missing(text):
    assert missing(text)
    assert not missing(f"{text}x")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a|b", ["a", "b"]),
        ("a;b", ["a", "b"]),
        ("a; b", ["a", "b"]),
        ("['a', 'b']", ["a", "b"]),
        ('["a"]', ["a"]),
        ("{a, b}", ["a", "b"]),
        ("(a, b)", ["a", "b"]),
        ("[1, 0]", ["1", "0"]),
        ("[1. 0.]", ["1.", "0."]),
        ("0 1 0", ["0", "1", "0"]),
        ("a", None),
        ("nevus, other", None),
        ("grade 1", None),
        ("(early) stage", None),
        ("10", None),
        ("and/or", None),
    ],
)
def test_labels_that_are_lists(text, parts):
    assert label_list(text) == parts
    assert set(label_lists({text, "z"})) == ({text} if parts else set())


def test_commas_separate_labels_that_stand_alone_elsewhere():
    labels = ["edema", "effusion", "edema, effusion", "nevus, other", "a+b", "b+a", "solid/cystic"]
    assert set(label_lists(labels)) == {"edema, effusion", "a+b", "b+a"}


def test_letters_that_look_alike():
    for one, other in (("normal", "nоrmal"), ("COVID-19", "СOVID–19"), ("a_b", "A b")):
        assert skeleton(one) == skeleton(other)
        assert clean(one) != clean(other)
    assert "CYRILLIC SMALL LETTER O" in alike("normal", "nоrmal")
    assert len(set(map(skeleton, ("5 mm", "5 μm", "grade I", "grade II", "α", "a")))) == 6
