"""Support sets by natural prevalence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vipbench.api import Split
from vipbench.engine.planning.sampling import SamplingError, draw_prevalent, draw_support, quotas

counts = st.lists(st.integers(1, 60), min_size=2, max_size=8)


def make_split(labels: list[int]) -> Split:
    ids = tuple(f"image{i}" for i in range(len(labels)))
    images = [np.array([[i // 256, i % 256]], np.uint8) for i in range(len(labels))]
    return Split(images, np.array(labels, np.int64), ids)


@settings(max_examples=200)
@given(counts, st.data())
def test_quotas_follow_the_frequencies(have: list[int], data: st.DataObject) -> None:
    budget = data.draw(st.integers(len(have), sum(have)))
    found = quotas(have, budget)
    assert sum(found) == budget
    assert all(1 <= n <= m for n, m in zip(found, have, strict=True))
    # Nobody could give an image away and both be closer to their shares: who has more than one has
    # at least the priority of everyone else's next.
    for i, n in enumerate(found):
        for j, m in enumerate(found):
            if n > 1 and m < have[j]:
                assert have[i] / (2 * n - 1) >= have[j] / (2 * m + 1)


@settings(max_examples=60)
@given(counts, st.data())
def test_a_larger_budget_takes_nothing_away(have: list[int], data: st.DataObject) -> None:
    budget = data.draw(st.integers(len(have), sum(have) - 1)) if sum(have) > len(have) else None
    if budget is not None:
        more = quotas(have, budget + 1)
        assert sorted(m - n for n, m in zip(quotas(have, budget), more, strict=True))[-1] == 1
        assert all(m >= n for n, m in zip(quotas(have, budget), more, strict=True))


def test_a_proportional_budget_is_met_exactly() -> None:
    assert quotas([60, 30, 10], 10) == [6, 3, 1]
    assert quotas([500, 1], 4) == [3, 1]
    with pytest.raises(ValueError, match="shared"):
        quotas([3, 3], 7)


@settings(max_examples=40)
@given(st.permutations([0] * 40 + [1] * 16 + [2] * 8), st.integers(1, 3), st.integers(0, 2**40))
def test_supports_are_nested_and_begin_as_balanced_ones(
    labels: list[int], shots: int, seed: int
) -> None:
    train, names = make_split(labels), ("a", "b", "c")
    small, large = (draw_prevalent(train, train, names, k, seed, "k") for k in (shots, 2 * shots))
    assert len(set(small.train.tolist())) == 3 * shots
    assert set(small.train.tolist()) <= set(large.train.tolist())
    assert small.val is not None
    assert len(small.val) == 3 * shots
    balanced = draw_support(train, None, 3, names, 8, seed, "nested", "none").train.tolist()
    for label in range(3):
        mine = [i for i in small.train.tolist() if labels[i] == label]
        order = [i for i in balanced if labels[i] == label]
        assert mine[:8] == order[: len(mine)]


def test_what_cannot_be_drawn_is_reported() -> None:
    train, names = make_split([0] * 5 + [1] * 2), ("a", "b")
    whole = draw_prevalent(train, None, names, None, 1, "none")
    assert sorted(whole.train.tolist()) == list(range(7))
    assert whole.val is None
    with pytest.raises(SamplingError, match=r"4 shots .*2 classes .*8 .* 3"):
        draw_prevalent(train, None, names, 4, 1, "none")
    with pytest.raises(SamplingError, match="class 'c'"):
        draw_prevalent(train, None, ("a", "b", "c"), 1, 1, "none")
    with pytest.raises(SamplingError, match="class 'b'"):
        draw_prevalent(train, make_split([0]), names, 1, 1, "k")
