"""The ranges of hyperparameters: the built-in methods', and a plugin's own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from annotated_types import Interval
from pydantic import Field

from tests.conftest import Cli
from vipbench import api
from vipbench.engine.planning.hparams import make_hparams
from vipbench.errors import UsageError
from vipbench.plugins.registry import load_registry


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("coop.lr=-1", "above 0"),
        ("coop.lr=nan", "above 0"),
        ("coop.lr=inf", "at most 1000000"),
        ("coop.n_ctx=0", "from 1"),
        ("coop.epochs=0", "from 1"),
        ("coop.batch_size=0", "from 1"),
        ("tip-adapter.alpha=1e38", "at most 1000000"),
        ("clip-adapter.ratio=1.5", "at most 1"),
    ],
)
def test_a_setting_without_sense_is_refused(cli: Cli, setting: str, expected: str) -> None:
    name, _, value = setting.partition("=")
    method = name.partition(".")[0]
    done = cli("run", "--dry-run", "--methods", method, "--set", setting)
    assert done.returncode == 2
    for fact in (name, str(float(value)) if "." in value or "e" in value else value, expected):
        assert fact in done.stderr


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("coop", "lr", "\u0661"),  # a digit one
        ("coop", "lr", "1_0"),
        ("transclip-fs", "gammas", "nan,0.1"),
        ("transclip-fs", "gammas", "-1"),
        ("transclip-fs", "gammas", "1e38"),
        ("vpt", "template", "a photo"),
        ("cliplora", "template", "{} and {}"),
    ],
)
def test_a_text_without_sense_is_refused(name: str, field: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"{field} is {re.escape(repr(value))}"):
        make_hparams(load_registry().methods[name].target, {field: value})


def test_views_have_an_end(cli: Cli) -> None:
    done = cli("run", "--dry-run", "--views", "1000000000")
    assert done.returncode == 2
    for fact in ("--views", "1000000000", "1 to 10000"):
        assert fact in done.stderr


def test_every_number_of_the_built_in_methods_has_its_lower_end() -> None:
    for name, found in load_registry().methods.items():
        method: type[api.Method] = found.target
        for field, default in vars(method.HParams()).items():
            if isinstance(default, int | float) and not isinstance(default, bool):
                for wrong in (-1, -1e30, float("nan"), float("-inf")):
                    with pytest.raises(UsageError, match=re.escape(f"{name}.{field}")):
                        make_hparams(method, {field: type(default)(-1) if wrong == -1 else wrong})


class Own(api.Method):
    """A plugin's method: ranges by its types, by the names that all use, and none."""

    name, kind = "own", "AD"

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """As the types say."""

        share: api.Proportion = 0.5
        gap: Annotated[float, Interval(gt=0, lt=2)] | None = None
        rank: Annotated[int, Field(ge=2, le=8)] = 4
        lr: float = 1e-3
        shift: float = 0.0
        wide: Annotated[int, Field(le=10**12)] = 5

    def forward(self, x: Any) -> Any: ...


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"share": 1.01}, r"0.* 1"),
        ({"gap": 2.0}, r"above 0.* 2"),
        ({"rank": 9}, "whole .*2.* 8"),
        ({"lr": 0.0}, "above 0"),
        ({"shift": 1e38}, "-1000000.* 1000000"),
        ({"shift": float("nan")}, "from -1000000"),
    ],
)
def test_a_plugins_ranges(given: dict[str, Any], expected: str) -> None:
    (name,) = given
    with pytest.raises(UsageError, match=expected) as error:
        make_hparams(Own, given)
    assert f"own.{name} is {given[name]}" in str(error.value)


def test_what_is_within_a_plugins_ranges_is_taken() -> None:
    given = {"share": 0, "gap": None, "rank": 8, "lr": "1e-2", "shift": -3, "wide": 10**12}
    made = make_hparams(Own, given)
    assert made == Own.HParams(0.0, None, 8, 0.01, -3.0, 10**12)


def test_the_tutorial_page_names_the_types() -> None:
    page = (Path(__file__).parents[2] / "docs" / "tutorial-method.md").read_text()
    for name in ("Count", "Whole", "Positive", "NonNegative", "Proportion", "ProportionBelowOne"):
        assert f"`api.{name}`" in page
