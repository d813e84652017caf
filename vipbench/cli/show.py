"""`vipbench show`: the options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vipbench.cli import options
from vipbench.cli.options import DEFAULT_FOLDER, DefaultFolder, option


def show(
    key: Annotated[
        str | None,
        typer.Argument(
            metavar="[KEY]",
            show_default=False,
            help="A key or its beginning; or choose the record with the options.",
        ),
    ] = None,
    folder: DefaultFolder = DEFAULT_FOLDER,
    format: Annotated[str, option("--format", "text|json", "Output format.")] = "text",
    methods: options.Methods = None,
    datasets: options.Datasets = None,
    backbones: options.Backbones = None,
    shots: options.Shots = None,
    seeds: options.Seeds = None,
) -> int:
    """Show one record in full, with errors per class."""
    from vipbench.cli.commands.show import show_command
    from vipbench.results.selection import Selection

    if key is not None and folder == DEFAULT_FOLDER and (Path(key) / "results.sqlite").exists():
        folder, key = Path(key), None
    chosen = Selection.of(datasets, backbones, methods, shots, seeds)
    return show_command(key, folder, format, chosen)
