"""`vipbench explain`: the options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vipbench.cli.options import AllowCode, Run, out, text


def explain(
    context: typer.Context,
    run: Run,
    images: Annotated[
        list[str] | None,
        text("--images", "PATH...", "Image files to explain; [DATASET=]DIR: where a table's are."),
    ] = None,
    errors: Annotated[
        int, text("--errors", "N", "The N most confidently wrong test images. [6]")
    ] = 6,
    out: Annotated[Path, out("FILE", "A .html, .png or .pdf. [explanation.html]")] = Path(
        "explanation.html"
    ),
    cell: Annotated[
        str | None, text("--cell", "KEY", "Which cell, by the beginning of its key.")
    ] = None,
    embed: Annotated[
        bool,
        typer.Option("--embed-images", help="Put images into the page though no licence says so."),
    ] = False,
    include_paths: Annotated[
        bool, typer.Option("--include-paths", help="Names of files and images as they are.")
    ] = False,
    allow_code: AllowCode = False,
) -> int:
    """Show for images the score of every symptom, the merge attention, decision and runner-up; and
    across the test set which symptoms decide, and which images names get wrong."""
    from vipbench.cli.commands.explain import explain_command

    given = [*(images or []), *(context.args if images else ())]
    if context.args and not images:
        raise typer.BadParameter(f"unexpected extra argument {context.args[0]}", context)
    return explain_command(run, given, errors, out, cell, embed, include_paths)
