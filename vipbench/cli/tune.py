"""`vipbench tune`: the options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from vipbench.cli.options import AllowCode, with_flags_of


def make_tune(run: Callable[..., int], own: tuple[str, ...]) -> Callable[..., int]:
    """`vipbench tune`."""

    def tune(context: typer.Context, **values: Any) -> int:
        """Try as many settings of every method, and save the best of each as a suite.

        Trials are scored on validation images; the test split is not read. The first trial is the
        settings as given. A trial that is done is not run again. --out is the trials' folder.
        """
        names = ("trials", "output", "metric", "search_seed", "range", "dry_run", "allow_code")
        mine = {name: values.pop(name) for name in names}
        from vipbench.cli.commands.suites import spec_of_flags

        spec = spec_of_flags(context, values)
        from vipbench.cli.commands.tune import options, trials_spec, tune_command

        return tune_command(trials_spec(spec, values["out"] is not None), options(mine))

    def option(kind: Any, *flags: str, metavar: str | None, help: str) -> Any:
        return Annotated[kind, typer.Option(*flags, metavar=metavar, help=help)]

    return with_flags_of(
        tune,
        run,
        (*own, "score_on", "selection", "protocol", "tables", "figures"),
        trials=(10, option(int, "--trials", metavar="N", help="Of each method.")),
        output=(
            Path("tuned.yaml"),
            option(Path, "-o", "--output", metavar="FILE", help="The suite to write."),
        ),
        metric=("accuracy", option(str, "--metric", metavar="NAME", help="What is to be highest.")),
        range=(
            None,
            option(
                list[str] | None,
                "--range",
                metavar="METHOD.HPARAM=LOW..HIGH",
                help="Where to look, or METHOD.HPARAM=A|B|C; repeatable.",
            ),
        ),
        search_seed=(1, option(int, "--search-seed", metavar="N", help="Other settings to try.")),
        dry_run=(
            False,
            option(bool, "--dry-run", metavar=None, help="List the trials; run nothing."),
        ),
        allow_code=(False, AllowCode),
    )
