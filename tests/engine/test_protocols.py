"""What is trained and tested under each protocol."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vipbench.api import Dataset, Split
from vipbench.engine.planning.loading import LoadedDataset, sha
from vipbench.engine.planning.protocols import (
    Part,
    Scene,
    arrange,
    draw,
    home,
    test_rows,
    test_split,
)
from vipbench.engine.planning.sampling import SamplingError, draw_support
from vipbench.errors import UsageError
from vipbench.runspec.run import RunSpec

# Functions of the engine, no tests.
test_rows.__test__ = test_split.__test__ = False  # type: ignore[attr-defined]


class Toy(Dataset):
    def __init__(self, name: str, names: tuple[str, ...]) -> None:
        self.name, self.class_names = name, names

    def load(self, root: Path | None) -> Mapping[str, Split]:
        raise NotImplementedError


def make_split(labels: list[int]) -> Split:
    ids = tuple(f"image{i}" for i in range(len(labels)))
    groups = tuple(f"patient{i}" for i in range(len(labels)))
    images = [np.full((1, 1), i, np.uint8) for i in range(len(labels))]
    return Split(images, np.array(labels, np.int64), ids, groups)


def toy(name: str, names: tuple[str, ...], labels: list[int] | None = None) -> LoadedDataset:
    split = make_split(labels or [*range(len(names))] * 4)
    texts = tuple((f"sign of {n}", "other") for n in names)
    return LoadedDataset(
        Toy(name, names), SimpleNamespace(), dict.fromkeys(("train", "val", "test"), split),
        sha(name), texts, sha(texts), (), texts,
    )  # fmt: skip


def scenes(protocol: object, *data: LoadedDataset) -> list[Scene]:
    loaded = {d.dataset.name: d for d in data}
    return arrange(RunSpec.parse({"protocol": protocol, "datasets": ",".join(loaded)}), loaded)


many = st.integers(4, 9).flatmap(
    lambda n: st.permutations([*range(n)] * 3).map(lambda labels: (n, labels))
)


@settings(max_examples=60)
@given(many)
def test_base_and_new_share_out_classes_and_images(given: tuple[int, list[int]]) -> None:
    n, labels = given
    names = tuple(f"class {i}" for i in range(n))
    [scene] = scenes("base-to-new", toy("t", names, labels))
    part = scene.parts[1]
    assert isinstance(part, Part)
    base, new = scene.data, part.data
    # As CoCoOp's program: the first ceil(n/2) labels are base.
    assert base.dataset.class_names == names[: -(-n // 2)]
    assert base.dataset.class_names + new.dataset.class_names == names
    assert (base.dataset.name, new.dataset.name, home(base), home(new)) == (
        "t [base]", "t [new]", "t", "t"
    )  # fmt: skip
    assert sorted([*test_rows(base), *test_rows(new)]) == list(range(len(labels)))
    for data in (base, new):
        own, split = data.dataset.class_names, test_split(data)
        assert [own[label] for label in split.labels] == [names[labels[i]] for i in test_rows(data)]
        assert split.ids == tuple(f"image{i}" for i in test_rows(data))
        assert data.counts("train") == [3] * len(own)
        assert data.symptoms == tuple((f"sign of {name}", "other") for name in own)
        assert data.descriptions == data.symptoms


@settings(max_examples=60)
@given(many, st.sampled_from(["nested", "coop"]), st.integers(1, 3), st.integers(0, 2**30))
def test_base_supports_are_those_of_few_shot(
    given: tuple[int, list[int]], sampler: str, shots: int, seed: int
) -> None:
    n, labels = given
    data = toy("t", tuple(f"class {i}" for i in range(n)), labels)
    [scene] = scenes("base-to-new", data)
    rest = (shots, seed, sampler, "min(k,4)", "image")
    found = draw("base-to-new", scene.data, *rest)
    few = draw("few-shot", data, *rest)
    half = -(-n // 2)
    assert few.val is not None
    assert found.val is not None
    for mine, all_of_them in ((found.train, few.train), (found.val, few.val)):
        assert mine.tolist() == [i for i in all_of_them.tolist() if labels[i] < half]
    full = draw("base-to-new", scene.data, None, seed, sampler, "none", "image")
    assert sorted(full.train.tolist()) == [i for i, label in enumerate(labels) if label < half]
    assert full.val is None


def test_few_shot_draws_as_before() -> None:
    data = toy("t", ("a", "b"))
    train = data.splits["train"]
    before = draw_support(train, train, 2, ("a", "b"), 2, 7, "nested", "k", "image")
    found = draw("few-shot", data, 2, 7, "nested", "k", "image")
    assert found.train.tolist() == before.train.tolist()
    assert scenes("few-shot", data) == [Scene(data)]
    assert scenes("full", data) == [Scene(data)]
    with pytest.raises(SamplingError, match="5 shots"):
        draw("base-to-new", data, 5, 7, "nested", "k", "image")


@pytest.mark.parametrize("n", [2, 3])
def test_too_few_classes_for_base_and_new(n: int) -> None:
    [scene] = scenes("base-to-new", toy("t", tuple("abc"[:n])))
    assert scene.reason is not None
    assert re.search(f"'t' .*{n} classes.*base-to-new.* 4 ", scene.reason)


def test_a_transfer_has_one_source_and_all_others_as_targets() -> None:
    a, b, c = toy("a", ("x", "y")), toy("b", ("x", "z")), toy("c", ("u", "v"))
    [scene] = scenes({"name": "cross-dataset", "source": "b"}, a, b, c)
    assert scene.data is b
    assert scene.protocol_fields == {}
    names = [part.data.dataset.name for part in scene.parts if part is not None]
    assert scene.parts[0] is None
    assert names == ["b->a", "b->c"]
    assert all(part is None or part.columns is None for part in scene.parts)


def test_shifted_classes_are_mapped_by_name_or_as_said() -> None:
    ours = toy("a", ("mel_anoma", "Nevus", "keratosis", "wart"))
    theirs = toy("b", ("benign", "Mel Anoma"))
    message = {"name": "domain-shift", "classes": {"b": {"benign": ["nevus", "keratosis"]}}}
    [scene] = scenes(message, ours, theirs)
    part = scene.parts[1]
    assert isinstance(part, Part)
    assert part.columns == ((1, 2), (0,))
    assert part.protocol_fields["classes"] == {
        "benign": ["Nevus", "keratosis"],
        "Mel Anoma": ["mel_anoma"],
    }
    (note,) = part.notes
    assert note.endswith("class: wart")
    assert part.data.dataset.name == "a->b [shift]"


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({}, "protocol.classes: {b: {z: x}}"),
        ({"z": "w"}, "'a' 'w'"),
        ({"zz": "x"}, "'b' 'zz'"),
        ({"z": "x"}, "'x' of 'a'"),
    ],
)
def test_what_does_not_map_is_refused(classes: dict[str, str], message: str) -> None:
    given = {"name": "domain-shift", "classes": {"b": classes}} if classes else "domain-shift"
    with pytest.raises(UsageError) as error:
        scenes(given, toy("a", ("x", "y")), toy("b", ("x", "z")))
    assert message in str(error.value)


def test_other_protocols_have_a_name_in_tables() -> None:
    for name in ("imbalanced", "validation-free"):
        [scene] = scenes(name, toy("t", ("a", "b")))
        assert scene.data.dataset.name == f"t [{name}]"
        assert scene.protocol_fields == {"name": name}
        assert home(scene.data) == "t"
        assert len(test_split(scene.data)) == 8
