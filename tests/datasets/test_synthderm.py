"""synthderm: determinism, attributes as ground truth, names and symptoms."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.tiny_clip_captions import FACTS, PHRASES, caption, facts_of, vocabulary
from vipbench.api.dataset import fingerprint_splits
from vipbench.datasets import _render, synthderm
from vipbench.errors import UsageError
from vipbench.images import ImageChangedError
from vipbench.symptoms import shipped_symptoms

DIGEST_PROGRAM = """
import hashlib
from vipbench.datasets.synthderm import render
print(hashlib.sha256(b"".join(render(s, i).tobytes() for s, i in {items})).hexdigest())
"""
SMALL_WORDS = {"a", "an", "and", "of", "the", "that", "with", "into", "do", "not", "very"}


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def test_images_are_the_same_in_a_fresh_process_and_in_any_order() -> None:
    items = [(s, i) for s in ("train", "val", "test") for i in (0, 7, 119)]
    for s, i in reversed(items):  # another order than the other process
        synthderm.render(s, i)
    here = hashlib.sha256(b"".join(synthderm.render(s, i).tobytes() for s, i in items))
    there = subprocess.run(
        [sys.executable, "-c", DIGEST_PROGRAM.format(items=items)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert here.hexdigest() == there


def test_drawing_leaves_the_global_random_state_alone() -> None:
    before = np.random.get_state()[1].tobytes()  # type: ignore[index,union-attr]
    synthderm.render("train", 0)
    assert np.random.get_state()[1].tobytes() == before  # type: ignore[index,union-attr]


def test_no_image_occurs_twice_within_or_across_splits() -> None:
    splits = synthderm.SynthDerm().load(None)
    digests = [s.open(i).tobytes() for s in splits.values() for i in range(len(s))]
    assert len(set(digests)) == len(digests) == 780


def test_digests_that_are_shipped_are_those_of_the_images(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class_names = synthderm.CLASS_NAMES
    shipped = synthderm.SynthDerm().load(None)
    assert all(split.planned for split in shipped.values()), synthderm.write_digests.__doc__
    # The code of an older file was another: every image is drawn.
    kept = json.loads(synthderm.DIGESTS.read_text())
    older = tmp_path / "older.json"
    older.write_text(json.dumps({**kept, "code": "0" * 64, "train": ["0" * 64] * 360}))
    for file in (older, tmp_path / "missing.json"):
        monkeypatch.setattr(synthderm, "DIGESTS", file)
        drawn = synthderm.SynthDerm().load(None)
        assert not any(split.planned for split in drawn.values())
    assert fingerprint_splits(class_names, drawn) == fingerprint_splits(class_names, shipped)
    wrong = dataclasses.replace(shipped["test"], planned=("0" * 64,) * 300)
    with pytest.raises(ImageChangedError):
        wrong.open(0)


def test_splits_are_balanced_and_lazy_sequences() -> None:
    splits = synthderm.SynthDerm().load(None)
    assert {k: s.counts(6) for k, s in splits.items()} == {
        "train": [60] * 6,
        "val": [20] * 6,
        "test": [50] * 6,
    }
    images = splits["test"].images
    assert images[-1] == synthderm.render("test", 299)  # type: ignore[comparison-overlap]
    assert list(images[298:]) == [images[298], images[299]]
    with pytest.raises(IndexError):
        images[300]


def test_a_caller_cannot_damage_an_image_that_is_remembered() -> None:
    images = synthderm.SynthDerm().load(None)["train"].images
    first = images[3]
    first.paste((0, 0, 0), (0, 0, 64, 64))  # type: ignore[union-attr]
    assert images[3] == synthderm.render("train", 3)  # type: ignore[comparison-overlap]


def test_attributes_follow_the_class_mostly_but_not_always() -> None:
    followed: list[bool] = []
    for i, label in enumerate(synthderm.labels("train")):
        seen = synthderm.attributes("train", i)
        for kind, value in synthderm.CLASSES[synthderm.CLASS_NAMES[label]].items():
            if isinstance(value, str):
                followed.append(seen[kind] == value)
            else:
                followed += [v in seen["structures"] for v in value]
    assert 0.7 < np.mean(followed) < 0.95


def test_no_single_attribute_tells_a_class() -> None:
    facts = [
        (kind, v)
        for typical in synthderm.CLASSES.values()
        for kind, value in typical.items()
        for v in ((value,) if isinstance(value, str) else value)
    ]
    for kind, value in facts:
        holds = [
            int(label)
            for i, label in enumerate(synthderm.labels("train"))
            if value in synthderm.attributes("train", i)[kind]
        ]
        assert len(set(holds)) >= 4, f"{kind} {value} is seen in too few classes"


@pytest.mark.parametrize("structure", _render.STRUCTURES)
def test_every_structure_changes_the_picture(structure: str) -> None:
    def draw(structures: tuple[str, ...]) -> np.ndarray:
        plain = _render.Attributes("round", "smooth", "brown", "single", "large", structures)
        return _render.paint(plain, _render.Stream([9, 9])).astype(float)

    # The stream runs on differently behind the structure: compare with a bound well above noise.
    assert (np.abs(draw((structure,)) - draw(())).max(-1) > 60).sum() > 20


def test_unknown_attribute_split_and_index_are_named() -> None:
    with pytest.raises(ValueError, match=r"border: .*'fuzzy'.*smooth"):
        _render.Attributes("round", "fuzzy", "red", "single", "small", ())
    with pytest.raises(UsageError, match=r"'dev'.*train, val, test"):
        synthderm.render("dev", 0)
    with pytest.raises(UsageError, match="299"):
        synthderm.attributes("test", 300)
    with pytest.raises(UsageError, match="argument"):
        synthderm._factory("x")


def test_no_word_of_a_class_name_is_in_any_caption() -> None:
    names = set().union(*(words(n) for n in synthderm.CLASS_NAMES))
    assert not names & vocabulary()
    assert not any(name in word for name in names for word in vocabulary())
    rng = _render.Stream([1])
    for _ in range(500):
        text, attributes_shown = caption(_render.random_attributes(rng), rng)
        assert words(text) <= vocabulary()
        assert 1 <= len(attributes_shown) <= 4


def test_captions_say_only_what_is_true() -> None:
    rng = _render.Stream([2])
    for _ in range(200):
        attributes = _render.random_attributes(rng)
        _, attributes_shown = caption(attributes, rng)
        assert set(attributes_shown) <= set(facts_of(attributes))
    assert set(PHRASES) == set(FACTS)


def test_every_content_word_of_the_symptoms_is_in_the_captions() -> None:
    symptoms = shipped_symptoms("synthderm", synthderm.CLASS_NAMES)
    assert symptoms is not None
    for name, texts in symptoms.items():
        assert len(texts) >= 4
        for text in texts:
            assert words(text) - SMALL_WORDS <= vocabulary(), text
            assert not words(text) & words(name)
    assert len({len(texts) for texts in symptoms.values()}) > 1  # ragged classes are exercised
