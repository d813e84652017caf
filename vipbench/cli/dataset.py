"""`vipbench dataset split`: the options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vipbench.cli.options import DataRoot, ImageRoots, number, option, out, text

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
        option(
            "--group",
            "COLUMN",
            "Column of patient or lesion ids, each kept in one split, or dicom:PatientID.",
        ),
    ] = None,
    ratios: Annotated[
        str | None, text("--ratios", "T/V/T", "Ratios of train, validation and test. [6/1/3]")
    ] = None,
    folds: Annotated[
        int | None,
        text("--folds", "N", "Write N folds for cross-validation instead.", number(2, 1_000)),
    ] = None,
    seed: Annotated[int, option("--seed", "N", "Seed of the draw.", number(0, 2**32 - 1))] = 1,
    out: Annotated[Path | None, out("FILE", "The manifest to write.")] = None,
    data_root: DataRoot = None,
    images: ImageRoots = None,
) -> int:
    """Draw a stratified split, or folds, of data that have none, and write it as a manifest."""
    from vipbench.cli.commands.dataset import split_command

    return split_command(source, data_root, group, ratios, seed, out, images or (), folds)
