"""`vipbench doctor`: the options."""

from __future__ import annotations

from typing import Annotated

import typer

from vipbench.cli.options import AllowCode, DataRoot, PluginsDir


def doctor(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SUITE|BACKBONE|DATASET",
            show_default=False,
            help="Check only these. [all known ones]",
        ),
    ] = None,
    data_root: DataRoot = None,
    plugins_dir: PluginsDir = None,
    allow_code: AllowCode = False,
) -> int:
    """Show versions, devices, caches, plugins, and which data and weights are present.

    Exit status 1 if something that the bundled demo needs is broken, or something named is
    missing.
    """
    from vipbench.cli.commands.doctor import doctor_command

    return doctor_command(what or [], data_root, plugins_dir)
