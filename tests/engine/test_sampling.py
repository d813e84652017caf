from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vipbench.api import Split
from vipbench.engine.planning.sampling import (
    SamplingError,
    SupportIndices,
    draw_support,
    nested_order,
)
from vipbench.images import digest_image

NAMES = ("alpha", "beta", "gamma")
SHARED = Path(__file__).parents[2].parent / "shared"


def make_split(
    labels: list[int], groups: list[str] | None = None, content: Sequence[int] | None = None
) -> Split:
    """content: a number an image, equal for equal images; by default all are different."""
    numbers = range(len(labels)) if content is None else content
    images = [np.array([[i // 65536, i // 256 % 256, i % 256]], np.uint8) for i in numbers]
    ids = tuple(f"image{i}" for i in range(len(labels)))
    return Split(
        images, np.array(labels, dtype=np.int64), ids, None if groups is None else tuple(groups)
    )


def taken(split: Split, rows: Sequence[int]) -> Split:
    """Some rows of a split, in this order."""
    return Split(
        [split.images[i] for i in rows],
        split.labels[list(rows)],
        tuple(split.ids[i] for i in rows),
        None if split.groups is None else tuple(split.groups[i] for i in rows),
    )


def ids_of(split: Split, rows: npt.NDArray[np.int64] | None) -> list[str]:
    assert rows is not None
    return [split.ids[i] for i in rows.tolist()]


def draw(train: Split, val: Split | None = None, **changes) -> SupportIndices:
    arguments = {
        "n_classes": 3,
        "class_names": NAMES,
        "shots": 2,
        "seed": 1,
        "sampler": "nested",
        "validation": "none",
    }
    return draw_support(train, val, **{**arguments, **changes})


# Labels in any order, every class with at least 4 images.
many_labels = st.lists(st.integers(0, 2), max_size=40).flatmap(
    lambda extra: st.permutations([0, 1, 2] * 4 + extra)
)
seeds = st.integers(0, 2**40)


@settings(max_examples=60)
@given(many_labels, st.integers(1, 2), seeds, st.booleans(), st.data())
def test_nested_sets_are_balanced_and_contained(labels, shots, seed, grouped, data):
    groups = None
    if grouped:
        one = st.sampled_from(["p", "q", "r", "s"])
        groups = data.draw(st.lists(one, min_size=len(labels), max_size=len(labels)))
    split = make_split(labels, groups)
    small = draw(split, shots=shots, seed=seed).train
    large = draw(split, shots=2 * shots, seed=seed).train
    again = draw(split, shots=2 * shots, seed=seed).train
    assert large.tolist() == again.tolist()
    assert set(small.tolist()) <= set(large.tolist())
    assert len(set(large.tolist())) == len(large) == 6 * shots
    assert split.labels[large].tolist() == sorted([0, 1, 2] * 2 * shots)
    for label in range(3):
        mine = [i for i in large.tolist() if labels[i] == label]
        first = [i for i in small.tolist() if labels[i] == label]
        assert mine[:shots] == first


@settings(max_examples=60)
@given(st.lists(st.sampled_from("abcdef"), min_size=8, max_size=40), st.integers(1, 8), seeds)
def test_nested_draws_distinct_groups_first(groups, shots, seed):
    split = make_split([0] * len(groups), groups)
    chosen = draw(split, n_classes=1, class_names=["alpha"], shots=shots, seed=seed).train
    times = [sum(groups[i] == g for i in chosen.tolist()) for g in "abcdef"]
    # No group gives another image while one that still has images gave fewer.
    for group, n in zip("abcdef", times, strict=True):
        if n < groups.count(group):
            assert max(times) <= n + 1
    assert len({groups[i] for i in chosen.tolist()}) == min(shots, len(set(groups)))


@settings(max_examples=40)
@given(st.lists(st.sampled_from("abcdef"), min_size=30, max_size=40), st.integers(1, 2), seeds)
def test_shots_can_count_groups(groups, shots, seed):
    groups = [*groups, *"abcdef"]
    labels = [i % 3 for i in range(len(groups) - 6)] + [0, 1, 2, 0, 1, 2]
    split = make_split(labels, groups)
    pairs = set(zip(labels, groups, strict=True))
    if min(sum(c == label for c, _ in pairs) for label in range(3)) < 2 * shots:
        return
    small, large = (
        draw(split, split, shots=k, seed=seed, shots_unit="group", validation="k")
        for k in (shots, 2 * shots)
    )
    assert set(small.train.tolist()) <= set(large.train.tolist())
    for label in range(3):
        mine = [i for i in large.train.tolist() if labels[i] == label]
        held = {groups[i] for i in mine}
        assert len(held) == 2 * shots
        assert sorted(mine) == [
            i for i in range(len(labels)) if labels[i] == label and groups[i] in held
        ]
    assert large.val is not None
    # The first image of each group is what counting images takes, too.
    assert set(draw(split, shots=shots, seed=seed).train.tolist()) <= set(small.train.tolist())


def test_shots_in_groups_need_groups():
    split = make_split([0, 1, 2] * 4, ["p", "q"] * 6)
    with pytest.raises(SamplingError, match=r"'alpha' .*2 training groups.* 3 shots"):
        draw(split, shots=3, shots_unit="group")
    with pytest.raises(SamplingError, match="'nested'"):
        draw(split, shots_unit="group", sampler="coop")
    with pytest.raises(SamplingError, match="none"):
        draw(make_split([0, 1, 2] * 4), shots_unit="group")
    with pytest.raises(SamplingError, match="'patient'"):
        draw(split, shots_unit="patient")


def test_nested_groups_are_equally_likely_whatever_their_size():
    groups = ["big"] * 30 + ["small"]
    split = make_split([0] * 31, groups)
    firsts = [groups[nested_order(split, 0, seed, "support")[0]] for seed in range(400)]
    assert 150 < firsts.count("small") < 250


def test_nested_spreads_over_all_images():
    split = make_split([0] * 20 + [1] * 20 + [2] * 20)
    counts = np.zeros(60, int)
    for seed in range(400):
        counts[draw(split, shots=5, seed=seed).train] += 1
    # Each image is in a quarter of the sets: 100 of 400, sd 8.7.
    assert counts.min() > 60
    assert counts.max() < 140


def test_nested_depends_on_images_shots_and_seed_alone():
    split = make_split([0, 1, 2] * 30)
    np.random.seed(0)  # global state must not matter
    one = draw(split, split, shots=8, validation="none").train.tolist()
    np.random.seed(1)
    assert draw(split, split, shots=8, validation="full").train.tolist() == one
    assert draw(split, split, shots=8, validation="k").train.tolist() == one
    assert draw(split, shots=8, seed=2).train.tolist() != one
    other = make_split([0, 1, 2] * 30, content=range(90, 180))
    assert draw(other, shots=8).train.tolist() != one
    val = draw(split, split, shots=8, validation="k").val
    assert val is not None
    assert val.tolist() != one  # a purpose of its own


@settings(max_examples=60)
@given(many_labels, st.sampled_from([1, 2, 4, None]), seeds, st.booleans(), st.data())
def test_nested_depends_on_nothing_but_a_classs_own_images(labels, shots, seed, grouped, data):
    n = len(labels)
    groups = None
    if grouped:
        groups = data.draw(st.lists(st.sampled_from("pqrs"), min_size=n, max_size=n))
    split = make_split(labels, groups)
    unit = data.draw(st.sampled_from(["image", "group"])) if grouped and shots == 1 else "image"
    asked = {"shots": shots, "seed": seed, "validation": "k", "shots_unit": unit}
    before = draw(split, split, **asked)
    support, val = ids_of(split, before.train), ids_of(split, before.val)

    order = data.draw(st.permutations(range(n)))
    turned = taken(split, order)
    other_val = taken(turned, [i for i in range(n) if i % 3 or turned.labels[i] == 0])
    after = draw(turned, turned, **asked)
    assert ids_of(turned, after.train) == support
    assert ids_of(turned, after.val) == val
    names = ("a", "b", "c")
    after = draw(turned, other_val, class_names=names, **asked | {"validation": "none"})
    assert ids_of(turned, after.train) == support

    # The first class is gone: the others' images are the same.
    kept = [i for i in range(n) if turned.labels[i] > 0]
    fewer = taken(turned, kept)
    fewer = Split(fewer.images, fewer.labels - 1, fewer.ids, fewer.groups)
    after = draw(fewer, fewer, n_classes=2, class_names=("b", "c"), **asked)
    label_of = dict(zip(split.ids, labels, strict=True))
    assert ids_of(fewer, after.train) == [i for i in support if label_of[i] > 0]
    assert ids_of(fewer, after.val) == [i for i in val if label_of[i] > 0]


def test_renamed_images_and_groups_change_nothing():
    labels, groups = [0, 1, 2] * 20, [f"p{i % 7}" for i in range(60)]
    split = make_split(labels, groups)
    renamed = Split(
        split.images, split.labels, tuple(f"new/{i}" for i in reversed(split.ids)),
        tuple(f"q{int(g[1:]) * 5 % 7}" for g in groups),
    )  # fmt: skip
    for unit in ("image", "group"):
        one, two = (draw(s, shots=3, shots_unit=unit).train.tolist() for s in (split, renamed))
        assert one == two


def test_equal_images_come_by_id():
    split = make_split([0] * 12, content=[i // 3 for i in range(12)])
    drawn = ids_of(split, draw(split, n_classes=1, class_names=["alpha"], shots=12).train)
    order = list(reversed(range(12)))
    turned = taken(split, order)
    again = draw(turned, n_classes=1, class_names=["alpha"], shots=12).train
    assert ids_of(turned, again) == drawn
    for start in range(0, 12, 3):
        assert drawn[start : start + 3] == sorted(drawn[start : start + 3])


@pytest.mark.parametrize("purpose", ["support", "validation"])
def test_a_rank_is_the_hash_that_the_docs_state(purpose):
    split = make_split([0, 1, 2] * 30)
    drawn = draw(split, split, shots=5, seed=3, validation="k")
    digests = [digest_image(image) for image in split.images]

    def rank(row: int) -> str:
        return hashlib.sha256(f"3 {purpose} {digests[row]}".encode()).hexdigest()

    found = drawn.train if purpose == "support" else drawn.val
    assert found is not None
    expected = [
        row
        for label in range(3)
        for row in sorted((i for i in range(90) if i % 3 == label), key=rank)[:5]
    ]
    assert found.tolist() == expected


def test_a_groups_rank_is_that_of_its_smallest_digest():
    groups = [f"p{i % 9}" for i in range(40)]
    split = make_split([0] * 40, groups)
    drawn = draw(split, n_classes=1, class_names=["alpha"], shots=9, seed=2).train.tolist()
    smallest = {g: min(d for d, of in zip(split.digests, groups, strict=True) if of == g)
                for g in set(groups)}  # fmt: skip

    def rank(digest: str) -> str:
        return hashlib.sha256(f"2 support {digest}".encode()).hexdigest()

    assert [groups[i] for i in drawn] == sorted(smallest, key=lambda g: rank(smallest[g]))
    first = drawn[0]
    assert first == min(
        (i for i in range(40) if groups[i] == groups[first]), key=lambda i: rank(split.digests[i])
    )


@pytest.mark.parametrize("sampler", ["nested", "coop"])
@pytest.mark.parametrize(
    ("validation", "shots", "per_class"),
    [
        ("none", 8, None),
        ("k", 8, 8),
        ("min(k,4)", 8, 4),
        ("min(k,4)", 2, 2),
        ("full", 2, 10),
        ("k", None, 10),
        ("min(k,4)", None, 4),
        ("full", None, 10),
        ("k", 12, 10),  # takes what is there
    ],
)
def test_validation_policies(sampler, validation, shots, per_class):
    train = make_split([2, 0, 1] * 12)
    val = make_split([1, 2, 0] * 10)
    drawn = draw(train, val, shots=shots, sampler=sampler, validation=validation)
    if per_class is None:
        assert drawn.val is None
    else:
        assert drawn.val is not None
        assert val.counts(3) == [10] * 3
        assert np.bincount(val.labels[drawn.val]).tolist() == [per_class] * 3
    if shots is None:
        assert sorted(drawn.train.tolist()) == list(range(36))
    if per_class == 10 and validation == "full":
        assert drawn.val is not None
        assert sorted(drawn.val.tolist()) == list(range(30))


@pytest.mark.parametrize("sampler", ["nested", "coop"])
def test_too_few_images_name_class_and_numbers(sampler):
    train = make_split([0] * 9 + [1] * 9 + [2] * 3)
    with pytest.raises(SamplingError, match=r"'gamma' .*3 .*8 shots.* 3"):
        draw(train, shots=8, sampler=sampler)
    with pytest.raises(SamplingError, match=r"'gamma' .*0 "):
        draw(make_split([0, 1]), shots=1, sampler=sampler)
    with pytest.raises(SamplingError, match="'beta'"):
        draw(make_split([0, 2]), shots=None, sampler=sampler)


@pytest.mark.parametrize("sampler", ["nested", "coop"])
def test_empty_validation_class(sampler):
    train = make_split([0, 1, 2] * 4)
    with pytest.raises(SamplingError, match=r"'alpha' .*'k'"):
        draw(train, make_split([1, 2, 1, 2]), sampler=sampler, validation="k")
    with pytest.raises(SamplingError, match=r"validation.*'full'"):
        draw(train, None, sampler=sampler, validation="full")
    assert draw(train, None, sampler=sampler).val is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shots": 0}, "shots .*0"),
        ({"shots": -2}, "shots .*-2"),
        ({"sampler": "random"}, "'random'"),
        ({"validation": "some"}, "'some'"),
        ({"class_names": ["alpha"]}, "1 class .* 3 "),
    ],
)
def test_bad_arguments(changes, message):
    split = make_split([0, 1, 2] * 4)
    with pytest.raises(SamplingError, match=message):
        draw(split, split, **changes)


def test_coop_takes_classes_in_order_of_first_appearance():
    split = make_split([2, 0, 1] * 20)
    chosen = draw(split, sampler="coop", shots=3).train
    assert split.labels[chosen].tolist() == [2] * 3 + [0] * 3 + [1] * 3


def test_coop_draws_the_official_lists():
    split_file = SHARED / "data/official/split_skin.json"
    golden_file = SHARED / "golden/coop_sampler_derm7pt.json"
    if not (split_file.exists() and golden_file.exists()):
        pytest.skip("the official split and golden lists are not here")
    stored = json.loads(split_file.read_text())
    golden = json.loads(golden_file.read_text())
    paths = {name: [row[0] for row in stored[name]] for name in ("train", "val")}
    splits = {name: make_split([row[1] for row in stored[name]]) for name in ("train", "val")}
    assert len(golden) >= 10
    for key, expected in golden.items():
        seed, shots = map(int, re.findall(r"\d+", key))
        drawn = draw_support(
            splits["train"], splits["val"], 2, ("melanoma", "nevus"), shots, seed, "coop", "k"
        )
        assert drawn.val is not None
        assert [paths["train"][i] for i in drawn.train] == expected["train"]
        assert [paths["val"][i] for i in drawn.val] == expected["val"]
