"""From the flags of `vipbench run` to the RunSpec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from vipbench.spec import RunSpec


def demo_suite() -> RunSpec:
    """The bundled demo."""
    text = resources.files("vipbench").joinpath("suites", "demo.yaml").read_text(encoding="utf-8")
    return RunSpec.from_yaml_text(text, "the bundled demo suite")


def make_spec(
    suite: Path | None,
    flags: Mapping[str, Any],
    settings: Sequence[str] = (),
    plugins_dir_from_environment: bool = False,
) -> RunSpec:
    """The suite with the flags on top. Without a suite: the demo, or, where the flags name a part
    of the grid, the defaults for the other parts. Raises UsageError."""
    if suite is not None:
        base = RunSpec.from_yaml(suite)
    elif any(flags.get(key) for key in ("methods", "datasets", "backbones")):
        base = RunSpec()
    else:
        base = demo_suite()
    given = dict(flags)
    if plugins_dir_from_environment and base.plugins_dir is not None:
        del given["plugins_dir"]
    return base.merge(given, settings)
