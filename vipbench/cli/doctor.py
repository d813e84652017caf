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
            help="Look for these alone; by default for all that are known.",
        ),
    ] = None,
    data_root: DataRoot = None,
    plugins_dir: PluginsDir = None,
    allow_code: AllowCode = False,
) -> int:
    """Say versions, device and caches, which plugins load, and which data and weights are there.

    Exit status 0 unless something is broken that `vipbench run` alone needs, or that is named is
    missing.
    """
    from vipbench.cli.commands.doctor import doctor_command

    return doctor_command(what or [], data_root, plugins_dir)
