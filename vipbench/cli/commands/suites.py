"""From the flags of `vipbench run` to the RunSpec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vipbench import trust
from vipbench.errors import UsageError
from vipbench.runspec.executor import with_flags
from vipbench.runspec.run import MethodSpec, RunSpec, demo_suite
from vipbench.runspec.values import labelled, split


def make_spec(
    suite: Path | str | None,
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
    if isinstance(given.get("methods"), str):
        given["methods"] = extended(base.methods, given["methods"])
    if plugins_dir_from_environment and base.plugins_dir is not None:
        del given["plugins_dir"]
    return base.merge(given, settings)


def extended(methods: Sequence[MethodSpec], flag: str) -> str | list[Any]:
    """What `--methods` asks for: `+name` is added to the suite's methods, and where every entry
    has its `+` those stay. Raises UsageError where only some have one."""
    parts = split(flag)
    added = [part.removeprefix("+") for part in parts if part.startswith("+")]
    if not added:
        return flag
    if len(added) < len(parts):
        raise UsageError(
            f"--methods {flag}: put + before every entry, to add it to the suite's, or before none"
        )
    known = {method.label for method in methods}
    return [*methods, *(part for part in added if part not in known)]


def spec_of_flags(context: Any) -> RunSpec:
    """The RunSpec of a command that has the options of `cli/grid.py`. context: typer's."""
    given = context.params
    suite, file = given["suite"], given["file"]
    if file is not None and suite is not None:
        raise UsageError(f"two suites are given: {file} and --suite {suite}; give one")
    source = context.get_parameter_source("plugins_dir")
    from_environment = source is not None and source.name == "ENVIRONMENT"
    flags = {name: value for name, value in given.items() if name in RunSpec.model_fields}
    executor = flags.pop("executor", None)
    spec = make_spec(suite or file, flags, given["settings"] or (), from_environment)
    if "executor" in given:
        theirs = spec.executor.code if spec.executor else ()
        own = (given["jobs"], given["slurm"], given["cache_local"])
        chosen = with_flags(spec.executor, executor, *own)
        for text in chosen.code if chosen else ():
            if text not in theirs:
                trust.name(text)
        spec = spec.model_copy(update={"executor": chosen})
    for backbone in spec.backbones if flags["backbones"] else ():
        trust.name(labelled(backbone)[1])
    return spec
