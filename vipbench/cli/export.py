"""`vipbench export`: the options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vipbench.cli.options import DEFAULT_FOLDER, AllowCode, DefaultFolder, option, out


def export(
    out: Annotated[Path, out("FILE", "Output file.")],
    folder: DefaultFolder = DEFAULT_FOLDER,
    format: Annotated[
        str | None, option("--format", "parquet|csv|jsonl", "Default: by the file's ending.")
    ] = None,
    scores: Annotated[
        bool, typer.Option("--scores/--no-scores", help="Include scores of each test image.")
    ] = True,
    include_paths: Annotated[
        bool,
        typer.Option("--include-paths", help="Write real names of images, groups and files."),
    ] = False,
    superseded: Annotated[
        bool,
        typer.Option("--superseded", help="Include superseded records."),
    ] = False,
    bundle: Annotated[
        bool,
        typer.Option(
            "--bundle",
            help="Write a zip: suite, splits, prompts, plugin source and records of the last run.",
        ),
    ] = False,
    parameters: Annotated[
        bool, typer.Option("--parameters", help="Add learned parameters to the bundle.")
    ] = False,
    patient_data: Annotated[
        bool,
        typer.Option(
            "--patient-data",
            help="Also add learned parameters that hold features of single images.",
        ),
    ] = False,
    allow_code: AllowCode = False,
) -> int:
    """Export a folder's records as one file to share.

    Images and groups get pseudonyms. Paths, file names and error messages are left out unless
    --include-paths is given.
    """
    if bundle:
        from vipbench.cli.commands.export import bundle_command

        return bundle_command(folder, out, include_paths, parameters, patient_data)
    if parameters or patient_data:
        from vipbench.errors import UsageError

        raise UsageError("--parameters and --patient-data go into a bundle: add --bundle")
    from vipbench.cli.commands.export import export_command

    return export_command(folder, out, format, include_paths, scores, superseded)
