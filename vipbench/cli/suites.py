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


def spec_of_flags(context: Any, values: Mapping[str, Any]) -> RunSpec:
    """The RunSpec of a command that has the flags of `vipbench run`. context: typer's; values:
    parameter -> value, all of them fields of a RunSpec but `suite` and `settings`."""
    flags = dict(values)
    suite, settings = flags.pop("suite", None), flags.pop("settings", None)
    source = context.get_parameter_source("plugins_dir")
    from_environment = source is not None and source.name == "ENVIRONMENT"
    return make_spec(suite, flags, settings or (), from_environment)
