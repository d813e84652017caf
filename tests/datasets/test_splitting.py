from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vipbench.api import SPLITS, DataError
from vipbench.api.draw_split import draw_split

NAMES = ("a", "b")
sizes = st.integers(2, 60)


@given(sizes, sizes, st.integers(0, 99), st.randoms())
def test_by_image(n, m, seed, rng):
    labels = [0] * n + [1] * m
    ids = [f"image{i}" for i in range(n + m)]
    drawn = draw_split(labels, ids, NAMES, (6, 1, 3), seed)
    together = np.concatenate([drawn[s] for s in SPLITS])
    assert sorted(together.tolist()) == list(range(n + m))
    for c, total in enumerate((n, m)):
        counts = [sum(labels[i] == c for i in drawn[s].tolist()) for s in SPLITS]
        assert counts[0] >= 1
        assert counts[2] >= 1
        assert counts[1] >= 1 or total < 3
        for count, share in zip(counts, (0.6, 0.1, 0.3), strict=True):
            assert abs(count - share * total) <= 1
    # The order in which the images come does not matter.
    order = list(range(n + m))
    rng.shuffle(order)
    turned = draw_split([labels[i] for i in order], [ids[i] for i in order], NAMES, (6, 1, 3), seed)
    for name in SPLITS:
        assert {ids[order[i]] for i in turned[name]} == {ids[i] for i in drawn[name]}


def test_seed_and_ratios_matter():
    labels, ids = [0, 1] * 50, [str(i) for i in range(100)]
    one = draw_split(labels, ids, NAMES, (6, 1, 3), 1)
    two = draw_split(labels, ids, NAMES, (6, 1, 3), 2)
    assert one["test"].tolist() != two["test"].tolist()
    half = draw_split(labels, ids, NAMES, (1, 0, 1), 1)
    assert [len(half[s]) for s in SPLITS] == [50, 0, 50]


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 5)), min_size=24, max_size=80))
def test_groups_are_never_torn(patients):
    patients = [*patients, *[(c, 2) for c in (0, 1) for _ in range(6)]]
    labels = [c for c, n in patients for _ in range(n)]
    groups = [f"p{p}" for p, (_, n) in enumerate(patients) for _ in range(n)]
    ids = [str(i) for i in range(len(labels))]
    drawn = draw_split(labels, ids, NAMES, (6, 1, 3), 1, groups)
    held = [{groups[i] for i in drawn[s]} for s in SPLITS]
    assert not held[0] & held[1]
    assert not held[0] & held[2]
    assert not held[1] & held[2]
    assert sum(len(drawn[s]) for s in SPLITS) == len(labels)
    for c in (0, 1):
        total = labels.count(c)
        for name, share in zip(SPLITS, (0.6, 0.1, 0.3), strict=True):
            got = sum(labels[i] == c for i in drawn[name].tolist())
            assert abs(got - share * total) <= 5  # the largest group


def test_too_little():
    with pytest.raises(DataError, match=r"'b' .*1 .*2"):
        draw_split([0, 0, 1], ["x", "y", "z"], NAMES)
    with pytest.raises(DataError, match="class 'b'"):
        draw_split([0, 0, 1, 1], list("wxyz"), NAMES, groups=["p", "q", "r", "r"])
    with pytest.raises(DataError, match="ratios"):
        draw_split([0, 1], ["x", "y"], NAMES, (0, 1, 1))
