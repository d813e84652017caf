"""The suites in benchmarks/."""

from __future__ import annotations

from pathlib import Path

import pytest

from vipbench.plugins import load_registry
from vipbench.spec import RunSpec

SUITES = sorted((Path(__file__).resolve().parents[1] / "benchmarks").glob("*.yaml"))


@pytest.mark.parametrize("suite", SUITES, ids=lambda path: path.stem)
def test_a_suite_can_be_read_and_names_what_there_is(suite: Path) -> None:
    spec = RunSpec.from_yaml(suite)
    registry = load_registry()
    for method in spec.methods:
        found, _ = registry.method(method.name)
        found.HParams(**method.hparams)


def test_the_suite_of_all_methods_has_every_built_in_one() -> None:
    [suite] = [path for path in SUITES if path.stem == "all-methods"]
    spec = RunSpec.from_yaml(suite)
    assert {method.name for method in spec.methods} == set(load_registry().methods)
    assert (spec.datasets, spec.backbones) == (("synthderm",), ("tiny-clip",))
    assert (spec.shots, spec.seeds, spec.profile) == ((1, 4, 16), (1, 2, 3), "quick")
