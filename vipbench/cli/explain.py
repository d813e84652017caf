"""`vipbench explain`: the options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vipbench.cli.options import AllowCode, Run, number, out, text


def explain(
    context: typer.Context,
    run: Run,
    images: Annotated[
        list[str] | None,
        text(
            "--images",
            "PATH...",
            "Image files to explain; or [DATASET=]DIR, the folder of a table's images.",
        ),
    ] = None,
    errors: Annotated[
        int,
        text(
            "--errors",
            "N",
            "Explain the N most confident errors on the test set. [6]",
            number(0, 10_000),
        ),
    ] = 6,
    out: Annotated[
        Path, out("FILE", "Output file: .html, .png or .pdf. [explanation.html]")
    ] = Path("explanation.html"),
    cell: Annotated[
        str | None, text("--cell", "KEY", "The cell, by the beginning of its key.")
    ] = None,
    embed: Annotated[
        bool,
        typer.Option("--embed-images", help="Embed images even if no licence allows it."),
    ] = False,
    include_paths: Annotated[
        bool, typer.Option("--include-paths", help="Write real names of files and images.")
    ] = False,
    allow_code: AllowCode = False,
) -> int:
    """For each image, show the score of every symptom, the merge attention, decision and runner-up;
    for the test set, which symptoms decide and which images zero-shot gets wrong."""
    from vipbench.cli.commands.explain import explain_command

    given = [*(images or []), *(context.args if images else ())]
    if context.args and not images:
        raise typer.BadParameter(f"unexpected extra argument {context.args[0]}", context)
    return explain_command(run, given, errors, out, cell, embed, include_paths)
