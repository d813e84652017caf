"""`vipbench list`: the options."""

from __future__ import annotations

from typing import Annotated

import typer

from vipbench.cli.options import AllowCode, PluginsDir, option


def list_(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="[methods|backbones|datasets]", show_default=False, help="What to list. [all]"
        ),
    ] = None,
    plugins_dir: PluginsDir = None,
    allow_code: AllowCode = False,
    format: Annotated[
        str,
        option("--format", "text|json", "json includes hyperparameters."),
    ] = "text",
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", help="Add paper, year, trainable parameters, needs and cost of methods."
        ),
    ] = False,
) -> int:
    """List methods, backbones and datasets, including those of plugins."""
    from vipbench.cli.commands.list import list_command

    return list_command(kind, plugins_dir, format, verbose)
