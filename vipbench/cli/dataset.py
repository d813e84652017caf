"""`vipbench dataset split`: the options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vipbench.cli.options import ImageRoots

dataset_app = typer.Typer(help="Prepare data.", add_completion=False, rich_markup_mode=None)


@dataset_app.callback()
def _dataset() -> None:
    """Prepare data."""


@dataset_app.command()
def split(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", show_default=False, help="csv:PATH or folder:PATH.")
    ],
    group: Annotated[
        str | None,
        typer.Option("--group", metavar="COLUMN", help="Patients or lesions; none is in two."),
    ] = None,
    ratios: Annotated[
        str, typer.Option("--ratios", metavar="T/V/T", help="Of train, validation and test.")
    ] = "6/1/3",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Another draw.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", show_default=False, help="The manifest to write."),
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option("--data-root", metavar="DIR", show_default=False, help="Where data lie."),
    ] = None,
    images: ImageRoots = None,
) -> int:
    """Draw a stratified split of data that have none, and write it beside them."""
    from vipbench.cli.commands.dataset import split_command

    return split_command(source, data_root, group, ratios, seed, out, images or ())
