"""`vipbench list`: the options."""

from __future__ import annotations

from typing import Annotated

import typer

from vipbench.cli.options import AllowCode, PluginsDir, option


def list_(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="[methods|backbones|datasets]", show_default=False, help="What; by default all."
        ),
    ] = None,
    plugins_dir: PluginsDir = None,
    allow_code: AllowCode = False,
    format: Annotated[
        str,
        option("--format", "text|json", "json has every hyperparameter."),
    ] = "text",
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", help="Of methods, paper, year, trainable parameters, needs and cost."
        ),
    ] = False,
) -> int:
    """List the methods, backbones and datasets that there are, plugins included."""
    from vipbench.cli.commands.list import list_command

    return list_command(kind, plugins_dir, format, verbose)
