"""`vipbench check`: the options."""

from __future__ import annotations

from typing import Annotated

import typer

from vipbench.cli.options import AllowCode, DataRoot, PluginsDir


def check(
    what: Annotated[
        str,
        typer.Argument(
            metavar="FILE_OR_NAME", show_default=False, help="A plugin's file, or NAME[:ARG]."
        ),
    ],
    plugins_dir: PluginsDir = None,
    data_root: DataRoot = None,
    allow_code: AllowCode = False,
) -> int:
    """Run the conformance tests on a method, backbone or dataset."""
    from vipbench.cli.commands.check import check_command

    return check_command(what, plugins_dir, data_root)
