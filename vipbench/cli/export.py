"""`vipbench export`: the options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vipbench.cli.options import AllowCode, Folder, option, out


def export(
    folder: Folder,
    out: Annotated[Path, out("FILE", "What to write.")],
    format: Annotated[
        str | None, option("--format", "parquet|csv|jsonl", "By default the file's ending says.")
    ] = None,
    scores: Annotated[
        bool, typer.Option("--scores/--no-scores", help="Each test image's scores, or not.")
    ] = True,
    include_paths: Annotated[
        bool,
        typer.Option("--include-paths", help="Names of images, groups and files as they are."),
    ] = False,
    superseded: Annotated[
        bool,
        typer.Option("--superseded", help="Also records whose place another took."),
    ] = False,
    bundle: Annotated[
        bool,
        typer.Option(
            "--bundle",
            help="A zip with the last run's suite, splits, prompts, plugins' source and records.",
        ),
    ] = False,
    parameters: Annotated[
        bool, typer.Option("--parameters", help="Into a bundle: what was learned.")
    ] = False,
    patient_data: Annotated[
        bool,
        typer.Option(
            "--patient-data",
            help="Into a bundle: also learned parameters that hold single images' features.",
        ),
    ] = False,
    allow_code: AllowCode = False,
) -> int:
    """Write a folder's records into one file, for others.

    Images and groups get pseudonyms, and no path, file name or error message leaves, unless
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
