"""How a run's protocol is given."""

from __future__ import annotations

from typing import Any

import pytest

from vipbench.cli.commands.suites import make_spec
from vipbench.errors import UsageError
from vipbench.runspec.run import RunSpec

PAIR = "synthderm,npz:data/other.npz"


@pytest.mark.parametrize(
    "value",
    [
        "few-shot",
        "base-to-new",
        {"name": "cross-dataset", "source": "other"},
        {"name": "cross-dataset", "source": "npz:data/other.npz"},
        {"name": "domain-shift", "classes": {"other": {"x": "a, b", "y": ["c", "d"]}}},
    ],
)
def test_a_protocol_comes_back_as_it_was(value: Any) -> None:
    spec = RunSpec.parse({"protocol": value, "datasets": PAIR})
    assert RunSpec.from_yaml_text(spec.to_yaml()) == spec
    flags = {"protocol": spec.protocol.as_text(), "datasets": PAIR}
    assert RunSpec().merge(flags).protocol == spec.protocol


def test_what_a_protocol_takes_for_granted() -> None:
    assert RunSpec().protocol.name == "few-shot"
    assert RunSpec.parse({"protocol": "full"}).shots == ("full",)
    free = RunSpec.parse({"protocol": "validation-free"})
    assert (free.validation, free.selection) == ("none", "last")
    # A saved suite says all of its settings, and reads back.
    assert RunSpec.from_yaml_text(free.to_yaml()) == free
    spec = RunSpec.parse({"protocol": "cross-dataset", "datasets": PAIR})
    assert spec.protocol.trained_on(spec.datasets) == "synthderm"
    spec = RunSpec.parse({"protocol": "cross-dataset[source=other]", "datasets": PAIR})
    assert spec.protocol.trained_on(spec.datasets) == "npz:data/other.npz"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("protocol: base-to-old", "'base-to-old'"),
        ("protocol: 3", "few-shot, full"),
        ("protocol: {source: a}", "few-shot, full"),
        ("protocol: {name: full, sauce: a}", "'sauce'"),
        ("protocol: cross-dataset", "protocol: 'cross-dataset' "),
        ("protocol: base-to-new[source=synthderm]", "protocol: 'source' "),
        ("protocol: full\nshots: [1, 2]", "shots: "),
        ("protocol: validation-free\nvalidation: k", "validation: "),
        ("protocol: validation-free\nselection: best_val", "selection: "),
        ("protocol: imbalanced\nsampler: coop", "sampler: "),
        ("protocol: imbalanced\nshots_unit: group", "shots_unit: "),
        (
            f"protocol: cross-dataset[source=synth]\ndatasets: [{PAIR}]",
            "'synthderm'",
        ),
        (
            f"protocol: {{name: domain-shift, classes: {{other: [a]}}}}\ndatasets: [{PAIR}]",
            "protocol: of 'other' ",
        ),
        (
            f"protocol: {{name: domain-shift, classes: {{synthderm: {{a: b}}}}}}\n"
            f"datasets: [{PAIR}]",
            "protocol: classes: 'synthderm' ",
        ),
        (
            f"protocol: {{name: cross-dataset, classes: {{other: {{a: b}}}}}}\ndatasets: [{PAIR}]",
            "protocol: 'classes' ",
        ),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        RunSpec.from_yaml_text(text)
    assert message in str(error.value)


def test_a_flag_overrides_a_suite(tmp_path: Any) -> None:
    file = RunSpec.parse({"protocol": "base-to-new", "out": tmp_path}).save()
    assert make_spec(file, {}).protocol.name == "base-to-new"
    assert make_spec(file, {"protocol": "imbalanced"}).protocol.name == "imbalanced"
