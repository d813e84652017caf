"""`vipbench fetch` and `vipbench doctor`: having what a run needs before it needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vipbench.fetching import offline as connections

Offline = Annotated[
    bool,
    typer.Option(
        "--offline",
        envvar=connections.VARIABLE,
        help="Open no connection, whatever asks for one.",
    ),
]
_PluginsDir = Annotated[
    Path | None,
    typer.Option(
        "--plugins-dir",
        metavar="DIR",
        envvar="VIPBENCH_PLUGINS_DIR",
        help="Load the plugins in DIR's *.py files.",
    ),
]
_DataRoot = Annotated[
    Path | None,
    typer.Option("--data-root", metavar="DIR", show_default=False, help="Where data lie. [./data]"),
]


def register(app: typer.Typer) -> None:
    """Add both commands."""
    app.command(short_help="Bring weights, tokenizers and data.")(fetch)
    app.command(short_help="Say what is there, what is missing, what is broken.")(doctor)


def fetch(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="SUITE|BACKBONE|DATASET",
            show_default=False,
            help="A suite's file, or sources as a run names them.",
        ),
    ],
    data_root: _DataRoot = None,
    plugins_dir: _PluginsDir = None,
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
    from vipbench.cli.fetching import fetch_command

    return fetch_command(what, data_root, plugins_dir, offline)


def doctor(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SUITE|BACKBONE|DATASET",
            show_default=False,
            help="Look for these alone; by default for all that are known.",
        ),
    ] = None,
    data_root: _DataRoot = None,
    plugins_dir: _PluginsDir = None,
) -> int:
    """Say versions, device and caches, which plugins load, and which data and weights are there.

    Exit status 0 unless something is broken that `vipbench run` alone needs, or that is named is
    missing.
    """
    from vipbench.cli.doctor import doctor_command

    return doctor_command(what or [], data_root, plugins_dir)
