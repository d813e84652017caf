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
            help="A suite's file, or sources as a run names them.",
        ),
    ],
    data_root: DataRoot = None,
    plugins_dir: PluginsDir = None,
    allow_code: AllowCode = False,
    offline: Offline = False,
) -> int:
    """Bring what a run needs: weights, tokenizers, configurations of text towers, and data.

    Each file is checked by its digest, and a broken download is gone on from. Data behind a login
    or a form are named with the way to get them. With --offline it only checks what is there.
    Exit status: 0 all is there, 1 something could not be fetched, 2 something has to be got by
    hand.
    """
    if offline:
        connections.forbid()
    from vipbench.cli.commands.fetch import fetch_command

    return fetch_command(what, data_root, plugins_dir, offline)
