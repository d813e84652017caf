"""Which settings are tried, and which of them counts as best."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.results.samples import record_dict
from vipbench import api
from vipbench.api.dataset import DataError, Split
from vipbench.engine.planning.hparams import search_space
from vipbench.engine.planning.loading import on_validation
from vipbench.engine.tuning import judged, searched, with_ranges
from vipbench.errors import UsageError
from vipbench.plugins.registry import load_registry
from vipbench.results import Record
from vipbench.runspec.run import MethodSpec, RunSpec

REGISTRY = load_registry()
SPACE: dict[str, dict[str, Any]] = {
    "lr": {"low": 1e-4, "high": 1e-2, "log": True, "whole": False},
    "n_ctx": {"values": [4, 8, 16]},
    "depth": {"low": 1, "high": 9, "log": False, "whole": True},
}
DEFAULTS = {"lr": 2e-3, "n_ctx": 16, "depth": 9}


@given(st.integers(2, 40), st.integers(0, 2**31), st.sampled_from(["coop", "maple[lr=0.1]"]))
def test_trials_lie_within_their_ranges_and_more_trials_add_to_fewer(
    count: int, seed: int, flag: str
) -> None:
    [row] = RunSpec.parse({"methods": flag}).methods
    trials = searched(row, SPACE, DEFAULTS, count, seed).trials
    assert len(trials) == (count if flag == "coop" else min(count, 27))
    assert trials[0].spec == row
    assert len({trial.spec.label for trial in trials}) == len(trials)
    for trial in trials[1:]:
        assert trial.changes.keys() == SPACE.keys() - row.hparams.keys()
        assert row.hparams.items() <= trial.spec.hparams.items()
        for name, value in trial.changes.items():
            where = SPACE[name]
            assert (
                value in where["values"]
                if "values" in where
                else (
                    where["low"] <= value <= where["high"]
                    and type(value) is (int if where["whole"] else float)
                )
            )
    assert searched(row, SPACE, DEFAULTS, count + 7, seed).trials[:count] == trials


def test_log_ranges_are_filled_evenly_in_the_logarithm() -> None:
    trials = searched(MethodSpec(name="coop"), SPACE, DEFAULTS, 61, 1).trials[1:]
    logs = np.sort([math.log10(trial.changes["lr"]) for trial in trials])
    assert np.abs(logs - np.linspace(-4, -2, 60)).max() < 0.15


def test_a_small_space_is_used_up_and_holds_the_given_settings_once() -> None:
    space = {"n_ctx": SPACE["n_ctx"]}
    trials = searched(MethodSpec(name="coop"), space, DEFAULTS, 10, 1).trials
    assert not trials[0].changes
    assert sorted(t.changes.get("n_ctx", 16) for t in trials) == [4, 8, 16]
    assert searched(MethodSpec(name="x", hparams={"n_ctx": 4}), space, DEFAULTS, 10, 1).trials == ()


def test_every_space_of_a_built_in_method_builds_hyperparameters() -> None:
    spaces = {name: search_space(found.target) for name, found in REGISTRY.methods.items()}
    untuned = {name for name, space in spaces.items() if not space}
    assert untuned == {
        "zero-shot", "symptoms-mean", "symptoms-max", "cupl", "ncm", "lp++"
    }  # fmt: skip
    assert spaces["cocoop"]["lr"] == {"low": 2e-4, "high": 2e-2, "log": True, "whole": False}
    for name, found in REGISTRY.methods.items():
        row = MethodSpec(name=name)
        defaults = vars(found.target.HParams())
        for trial in searched(row, spaces[name], defaults, 8, 1).trials:
            found.target.HParams(**trial.spec.hparams)


class Wrong(api.Method):
    """Names a range that it has not."""

    name = "wrong"
    kind = "TF"

    class HParams(api.HParams):
        """No fields."""

        tunes = (api.Range("beta", 0.1, 1.0),)

    def forward(self, x: Any) -> Any:
        return x


def test_a_wrong_range_is_named() -> None:
    with pytest.raises(UsageError, match="'wrong' 'beta'"):
        search_space(Wrong)
    with pytest.raises(ValueError, match="high"):
        api.Range("lr", 2.0, 1.0)
    with pytest.raises(ValueError, match=r"low > 0.*low=0.0"):
        api.Range("lr", 0.0, 1.0, log=True)


@pytest.mark.parametrize(
    ("flag", "found"),
    [
        ("coop.lr=1e-5..1e-1", {"low": 1e-5, "high": 1e-1, "log": True, "whole": False}),
        ("coop.n_ctx=2..8", {"low": 2, "high": 8, "log": False, "whole": True}),
        ("coop.position=end|middle", {"values": ["end", "middle"]}),
        ("coop.lr=1..0.5", "higher"),
        ("coop.lr=a..b", "two"),
        ("coop.lr=1", "--set"),
        ("coop.lrr=1..2", "'lr'"),
        ("cop.lr=1..2", "'coop'"),
        ("lr=1..2", "--range takes METHOD.HPARAM"),
    ],
)
def test_ranges_of_the_command_line(flag: str, found: Any) -> None:
    kinds = {"lr": "float", "n_ctx": "int", "position": "Literal"}
    spaces = {"coop": {"hparams": {k: {"type": v} for k, v in kinds.items()}, "tunes": {}}}
    if isinstance(found, str):
        with pytest.raises(UsageError, match=found):
            with_ranges(spaces, [flag])
        return
    with_ranges(spaces, [flag])
    assert list(spaces["coop"]["tunes"].values()) == [found]


def test_the_first_of_the_highest_means_is_chosen_and_a_gap_is_no_number() -> None:
    row = searched(MethodSpec(name="coop"), SPACE, DEFAULTS, 4, 1)
    keys: dict[str, list[str]] = {}
    records: dict[str, Record] = {}
    given_scores = [(0.5, 0.7), (0.8, 0.4), (0.9, None), (0.6, 0.6)]
    for trial, values in zip(row.trials, given_scores, strict=True):
        for seed, value in enumerate(values):
            keys.setdefault(trial.spec.label, []).append(key := f"{trial.number}-{seed}")
            if value is not None:
                metrics = {"accuracy": value, "macro_f1": value, "n": 10}
                changed = record_dict(trial.spec.label, seed=seed, metrics=metrics)
                records[key] = Record.of(changed)
    tuned = judged(row, keys, records, "accuracy")
    assert [s.mean for s in tuned.scores] == [0.6, pytest.approx(0.6), None, 0.6]
    assert tuned.best is tuned.scores[0]
    assert tuned.scores[0].sd == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert (tuned.scores[2].cells, tuned.scores[2].planned) == (1, 2)


def _splits(labels: list[int], test: list[int]) -> dict[str, Split]:
    def made(name: str, of: list[int]) -> Split:
        images = [np.full((4, 4), i, np.uint8) for i in range(len(of))]
        return Split(images, np.array(of), tuple(f"{name}{i}" for i in range(len(of))))

    return {"train": made("t", labels), "val": made("v", labels), "test": made("x", test)}


@given(
    st.integers(1, 9),
    st.sampled_from(["val:k", "val:min(k,4)", "val:full"]),
    st.permutations([0, 1] * 6),
)
def test_validation_images_stand_in_the_test_splits_place(
    k: int, score_on: Any, test: list[int]
) -> None:
    spec = RunSpec.parse({"shots": [k], "score_on": score_on})
    found = on_validation(_splits([0, 1] * 6, test), spec, "toy", ("a", "b"))
    scored, val = found["test"], found["val"]
    most = {"val:k": min(k, 6), "val:min(k,4)": min(k, 4), "val:full": 6}[score_on]
    assert scored.counts(2) == [most, most]
    assert set(scored.ids) <= set(val.ids)
    for i, name in enumerate(scored.ids):
        row = val.ids.index(name)
        assert scored.labels[i] == val.labels[row]
        assert np.array_equal(scored.images[i], val.images[row])
    # Whatever the test split is, nothing changes.
    again = on_validation(_splits([0, 1] * 6, [0, 1]), spec, "toy", ("a", "b"))
    assert again["test"].ids == scored.ids


def test_scoring_on_validation_needs_images_and_one_number_of_shots() -> None:
    spec = RunSpec.parse({"shots": [2], "score_on": "val:k"})
    splits = _splits([0, 1], [0, 1])
    with pytest.raises(DataError, match="class 'c'"):
        on_validation(splits, spec, "toy", ("a", "b", "c"))
    with pytest.raises(UsageError, match="shots"):
        RunSpec.parse({"shots": [1, 2], "score_on": "val:k"})
    with pytest.raises(UsageError, match="--score-on: expected"):
        RunSpec.parse({"score_on": "train"})
