"""The commands for looking inside, writing plugins and being ready, and their options; what they
do is in modules of their own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer


def register(app: typer.Typer, run: Callable[..., int], not_of_the_suite: tuple[str, ...]) -> None:
    """Add the commands to the command line. run: `vipbench run`, whose selection flags `debug`
    takes over; not_of_the_suite: its parameters that are no field of a RunSpec."""
    app.command()(show)
    debug = _with_flags_of(run, not_of_the_suite)
    app.command("debug", short_help="Run one cell in the foreground.")(debug)


def show(
    key: Annotated[
        str, typer.Argument(metavar="KEY", show_default=False, help="A key, or how it begins.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A results folder.")] = Path(
        "vipbench-results"
    ),
    format: Annotated[
        str, typer.Option("--format", metavar="text|json", help="The form.")
    ] = "text",
) -> int:
    """Print a record whole, with its errors class by class."""
    from vipbench.cli.show import show_command

    return show_command(key, folder, format)


def _with_flags_of(run: Callable[..., int], own: tuple[str, ...]) -> Callable[..., int]:
    """`vipbench debug`, with the flags of `run` that choose cells, and `--pdb`."""
    hints = get_type_hints(run, include_extras=True)
    kept = [
        p.replace(annotation=hints[name])
        for name, p in inspect.signature(run).parameters.items()
        if name in ("context", "suite", "settings") or name not in own
    ]
    pdb: Any = Annotated[
        bool, typer.Option("--pdb", help="Where it fails, stay there in the debugger.")
    ]
    kept.append(
        inspect.Parameter("pdb", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=pdb)
    )

    def debug(context: typer.Context, **values: Any) -> int:
        """Run one cell alone in this process, where print and pdb work, and keep nothing.

        The cell is the first that can be run of those that the flags choose.
        """
        from vipbench.cli.debug import debug_command
        from vipbench.cli.suites import spec_of_flags

        post_mortem = values.pop("pdb")
        return debug_command(spec_of_flags(context, values), post_mortem)

    vars(debug)["__signature__"] = inspect.Signature(kept, return_annotation=int)
    debug.__annotations__ = {p.name: p.annotation for p in kept}
    return debug
