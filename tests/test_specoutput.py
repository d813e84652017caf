"""The tables and figures that a suite names."""

from __future__ import annotations

import pytest

from vipbench.errors import UsageError
from vipbench.results.figures import KINDS
from vipbench.results.tables.layout import HIGHLIGHTS
from vipbench.results.tables.presets import PRESETS
from vipbench.results.tables.table import SPREADS
from vipbench.runspec import outputs as specoutput
from vipbench.runspec.run import RunSpec


def test_its_words_are_those_of_results() -> None:
    assert set(specoutput.PRESETS) == set(PRESETS)
    assert set(specoutput.KINDS) == set(KINDS)
    assert set(specoutput.SPREADS) == set(SPREADS)
    assert set(specoutput.HIGHLIGHTS) == set(HIGHLIGHTS)


@pytest.mark.parametrize(
    "text",
    [
        "tables: [comparison, ablation]\nfigures: [fewshot, bars]",
        "tables: [{name: mine, metrics: [accuracy, auroc], highlight: significant, average: on}]",
        "tables: comparison,knowledge",
        "figures: [{kind: bars, name: a-1, metric: auroc, aggregate: ci-images}, bars]",
        "tables: []",
    ],
)
def test_a_suite_comes_back_as_it_was(text: str) -> None:
    spec = RunSpec.from_yaml_text(text)
    assert RunSpec.from_yaml_text(spec.to_yaml()) == spec


def test_flags_name_presets_and_kinds() -> None:
    suite = RunSpec.from_yaml_text("figures: [{kind: bars, name: mine}]\ntables: [fewshot]")
    merged = suite.merge({"figures": "fewshot,confusion"})
    assert [figure.name for figure in merged.figures] == ["fewshot", "confusion"]
    assert merged.tables == suite.tables


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tables: [comparisn]", "'comparison'"),
        ("tables: [{preset: fewshot, agregate: sd}]", "'aggregate'"),
        ("tables: [{preset: fewshot, aggregate: sem}]", "aggregate 'sem'"),
        ("tables: [{highlight: best}]", "preset"),
        ("tables: [{preset: fewshot, name: table}]", "'table'"),
        ("figures: [{kind: bars, name: ../up}]", "digits, -"),
        ("figures: [bars, {kind: cd, name: bars}]", "'bars'"),
        ("figures: [{name: x}]", "kind"),
        ("figures: [[bars]]", "expected"),
    ],
)
def test_what_is_refused(text: str, expected: str) -> None:
    with pytest.raises(UsageError, match=r"line 1: (tables|figures): ") as error:
        RunSpec.from_yaml_text(text)
    assert expected in str(error.value)
