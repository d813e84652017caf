"""`vipbench explain`, `prompts`, `predict` and `evaluate`: the options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def _text(flag: str, metavar: str, help: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=help, show_default=False)


Prompt = Annotated[
    Path, typer.Argument(metavar="PROMPT", show_default=False, help="A file of `prompts`.")
]
Run = Annotated[Path, typer.Argument(metavar="RUN", show_default=False, help="A results folder.")]
Plugins = Annotated[Path | None, _text("--plugins-dir", "DIR", "Plugins, as for run.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    settings = {"allow_extra_args": True}
    app.command(short_help="Show what decided, symptom by symptom.", context_settings=settings)(
        explain
    )
    app.command(short_help="Write what was learned as files.")(prompts)
    app.command(short_help="Classify images with a prompt file.")(predict)
    app.command(short_help="Score a prompt file on a dataset.")(evaluate)


def explain(
    context: typer.Context,
    run: Run,
    images: Annotated[
        list[Path] | None, _text("--images", "PATH...", "Image files to explain.")
    ] = None,
    errors: Annotated[
        int, _text("--errors", "N", "The N most confidently wrong test images. [6]")
    ] = 6,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FILE", help="A .html, .png or .pdf.")
    ] = Path("explanation.html"),
    cell: Annotated[
        str | None, _text("--cell", "KEY", "Which cell, by the beginning of its key.")
    ] = None,
    embed: Annotated[
        bool,
        typer.Option("--embed-images", help="Put images into the page though no licence says so."),
    ] = False,
    include_paths: Annotated[
        bool, typer.Option("--include-paths", help="Names of files and images as they are.")
    ] = False,
) -> int:
    """Show for images the score of every symptom, the merge attention, decision and runner-up; and
    across the test set which symptoms decide, and which images names get wrong."""
    from vipbench.cli.explain import explain_command

    paths = [*(images or []), *(map(Path, context.args) if images else ())]
    if context.args and not images:
        raise typer.BadParameter(f"unexpected extra argument {context.args[0]}", context)
    return explain_command(run, paths, errors, out, cell, embed, include_paths)


def prompts(
    run: Run,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="DIR", help="Where to write them.")
    ] = Path("prompts"),
    patient_data: Annotated[
        bool,
        typer.Option("--patient-data", help="Also what may hold features of single images."),
    ] = False,
) -> int:
    """Write the learned parameters of every finished cell as a safetensors file with a card."""
    from vipbench.cli.explain import prompts_command

    return prompts_command(run, out, patient_data)


def predict(
    prompt: Prompt,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", show_default=False)],
    plugins_dir: Plugins = None,
) -> int:
    """Classify image files. Research only, not for clinical use."""
    from vipbench.cli.explain import predict_command

    return predict_command(prompt, images, plugins_dir)


def evaluate(
    prompt: Prompt,
    dataset: Annotated[str, _text("--dataset", "NAME", "The dataset, such as npz:FILE.")],
    data_root: Annotated[
        Path | None, _text("--data-root", "DIR", "Where it is looked for.")
    ] = None,
    symptoms: Annotated[
        list[str] | None,
        _text("--symptoms", "FILE", "Its symptoms, where its classes are others."),
    ] = None,
    plugins_dir: Plugins = None,
) -> int:
    """Score a prompt file on the test split of a dataset. Where its classes are others than those
    trained on, what was learned is put on their names and texts, if it belongs to no class."""
    from vipbench.cli.explain import evaluate_command

    return evaluate_command(prompt, dataset, data_root, plugins_dir, symptoms or ())
