from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
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

NAMES = ("alpha", "beta", "gamma")
SHARED = Path(__file__).parents[2].parent / "shared"


def make_split(labels: list[int], groups: list[str] | None = None) -> Split:
    images = [np.zeros((1, 1), np.uint8)] * len(labels)
    ids = tuple(f"image{i}" for i in range(len(labels)))
    return Split(
        images, np.array(labels, dtype=np.int64), ids, None if groups is None else tuple(groups)
    )


def draw(train: Split, val: Split | None = None, **changes) -> SupportIndices:
    arguments = {
        "n_classes": 3,
        "class_names": NAMES,
        "shots": 2,
        "seed": 1,
        "sampler": "nested",
        "validation": "none",
        "dataset_key": "key",
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
    with pytest.raises(SamplingError, match="'alpha' has 2 training groups, but 3 shots"):
        draw(split, shots=3, shots_unit="group")
    with pytest.raises(SamplingError, match="by the sampler 'nested' alone"):
        draw(split, shots_unit="group", sampler="coop")
    with pytest.raises(SamplingError, match="the dataset has none"):
        draw(make_split([0, 1, 2] * 4), shots_unit="group")
    with pytest.raises(SamplingError, match="unknown shots unit 'patient'"):
        draw(split, shots_unit="patient")


def test_nested_groups_are_equally_likely_whatever_their_size():
    groups = ["big"] * 30 + ["small"]
    split = make_split([0] * 31, groups)
    firsts = [groups[nested_order(split, 0, ("support", "key", seed, 0))[0]] for seed in range(400)]
    assert 150 < firsts.count("small") < 250


def test_nested_spreads_over_all_images():
    split = make_split([0] * 20 + [1] * 20 + [2] * 20)
    counts = np.zeros(60, int)
    for seed in range(400):
        counts[draw(split, shots=5, seed=seed).train] += 1
    # Each image is in a quarter of the sets: 100 of 400, sd 8.7.
    assert counts.min() > 60
    assert counts.max() < 140


def test_nested_depends_on_dataset_shots_and_seed_alone():
    split = make_split([0, 1, 2] * 30)
    np.random.seed(0)  # global state must not matter
    one = draw(split, split, shots=8, validation="none").train.tolist()
    np.random.seed(1)
    assert draw(split, split, shots=8, validation="full").train.tolist() == one
    assert draw(split, split, shots=8, validation="k").train.tolist() == one
    assert draw(split, shots=8, seed=2).train.tolist() != one
    assert draw(split, shots=8, dataset_key="other").train.tolist() != one
    val = draw(split, split, shots=8, validation="k").val
    assert val is not None
    assert val.tolist() != one  # a purpose of its own


def test_nested_draw_is_the_one_of_revision_1():
    # A change here changes every published number: raise sampling.REVISION with it.
    drawn = draw(make_split([0, 1, 2] * 30), make_split([2, 1, 0] * 9), validation="k")
    assert drawn.val is not None
    assert drawn.train.tolist() == [30, 42, 73, 76, 65, 47]
    assert drawn.val.tolist() == [11, 17, 25, 7, 9, 6]


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
        assert drawn.train.tolist() == list(range(36))
    if per_class == 10 and validation == "full":
        assert drawn.val is not None
        assert drawn.val.tolist() == list(range(30))


@pytest.mark.parametrize("sampler", ["nested", "coop"])
def test_too_few_images_name_class_and_numbers(sampler):
    train = make_split([0] * 9 + [1] * 9 + [2] * 3)
    with pytest.raises(SamplingError, match=r"'gamma' has 3 training images, but 8 shots.*most 3"):
        draw(train, shots=8, sampler=sampler)
    with pytest.raises(SamplingError, match="'gamma' has 0 training images"):
        draw(make_split([0, 1]), shots=1, sampler=sampler)
    with pytest.raises(SamplingError, match="'beta' has no training images"):
        draw(make_split([0, 2]), shots=None, sampler=sampler)


@pytest.mark.parametrize("sampler", ["nested", "coop"])
def test_empty_validation_class(sampler):
    train = make_split([0, 1, 2] * 4)
    with pytest.raises(SamplingError, match=r"'alpha' has no validation images.*'k'"):
        draw(train, make_split([1, 2, 1, 2]), sampler=sampler, validation="k")
    with pytest.raises(SamplingError, match=r"no validation images.*'full'"):
        draw(train, None, sampler=sampler, validation="full")
    assert draw(train, None, sampler=sampler).val is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shots": 0}, "shots is 0"),
        ({"shots": -2}, "shots is -2"),
        ({"sampler": "random"}, "unknown sampler 'random'"),
        ({"validation": "some"}, "unknown validation policy 'some'"),
        ({"class_names": ["alpha"]}, "1 class names were given for 3 classes"),
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
            splits["train"], splits["val"], 2, ("melanoma", "nevus"), shots, seed, "coop", "k", ""
        )
        assert drawn.val is not None
        assert [paths["train"][i] for i in drawn.train] == expected["train"]
        assert [paths["val"][i] for i in drawn.val] == expected["val"]
