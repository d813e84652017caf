"""`vipbench fetch`: the options."""

from __future__ import annotations

from typing import Annotated

import typer

from vipbench.cli.options import AllowCode, DataRoot, Offline, PluginsDir
from vipbench.fetching import offline as connections


def fetch(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="SUITE|BACKBONE|DATASET",
            show_default=False,
            help="Suite files, backbones or datasets.",
        ),
    ],
    data_root: DataRoot = None,
    plugins_dir: PluginsDir = None,
    allow_code: AllowCode = False,
    offline: Offline = False,
) -> int:
    """Download what a run needs: weights, tokenizers, text tower configurations and data.

    Files are checked by digest; interrupted downloads resume. For data behind a login or form,
    the way to get them is printed. With --offline it only checks what is present. Exit status: 0
    complete, 1 a download failed, 2 something must be obtained by hand.
    """
    if offline:
        connections.forbid()
    from vipbench.cli.commands.fetch import fetch_command

    return fetch_command(what, data_root, plugins_dir, offline)
