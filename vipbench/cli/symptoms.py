"""`vipbench symptoms` and its subcommands: the options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vipbench.cli.options import AllowCode, DataRoot, named_backbone, number, out, text

symptoms_app = typer.Typer(
    help="Make, check, show, compare and rank symptom sets.",
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Data = Annotated[str, text("--dataset", "NAME", "Dataset with the classes.")]
Model = Annotated[
    str,
    text("--backbone", "NAME", "A backbone with a text tower. [tiny-clip]", named_backbone),
]
File = Annotated[Path | None, text("--symptoms", "FILE", "Replace the dataset's own set.")]


@symptoms_app.command(short_help="Generate symptoms with a language model.")
def generate(
    dataset: Data,
    modality: Annotated[str, text("--modality", "WORDS", "Such as 'dermoscopic images'.")],
    model: Annotated[
        str | None, text("--model", "NAME", "The language model, as its server names it.")
    ] = None,
    out: Annotated[Path | None, out("FILE", "The symptom file.")] = None,
    base_url: Annotated[
        str | None,
        text(
            "--base-url",
            "URL",
            "The server. Without it, --cassette replays or the prompts are printed.",
        ),
    ] = None,
    kind: Annotated[
        str, text("--kind", "symptoms|descriptions", "Kind of texts. [symptoms]")
    ] = "symptoms",
    n: Annotated[
        int | None,
        text("-n", "N", "Texts to request per class. [10, descriptions 50]", number(1, 1_000)),
    ] = None,
    send_images: Annotated[
        bool, typer.Option("--send-images", help="Stage (b): show training images to the model.")
    ] = False,
    images: Annotated[
        str, text("--images", "train|support:K:SEED", "Which training images. [train]")
    ] = "train",
    consent: Annotated[
        str | None, text("--consent", "HOST", "Allow sending images to this host.")
    ] = None,
    intersection: Annotated[
        str, text("--intersection", "clip|model", "How stage (c) matches features. [clip]")
    ] = "clip",
    threshold: Annotated[
        float, text("--threshold", "X", "Similarity that keeps a feature. [0.25]", number(-1, 1))
    ] = 0.25,
    backbone: Model = "tiny-clip",
    prompts: Annotated[Path | None, text("--prompts", "FILE", "Your own prompts (JSON).")] = None,
    cassette: Annotated[
        Path | None, text("--cassette", "FILE", "Record replies in FILE, and replay recorded ones.")
    ] = None,
    temperature: Annotated[
        float | None, text("--temperature", "T", "Sampling temperature.", number(0, 100))
    ] = None,
    max_requests: Annotated[
        int,
        text(
            "--max-requests",
            "N",
            "Limit of HTTP requests, including retries. [100]",
            number(1, 10**6),
        ),
    ] = 100,
    timeout: Annotated[
        float, text("--timeout", "SECONDS", "Time limit per reply. [120]", number(0.1, 86_400))
    ] = 120.0,
    data_root: DataRoot = None,
    allow_code: AllowCode = False,
) -> int:
    """Generate symptoms (or descriptions) of a dataset's classes with a language model.

    Only class names and modality are sent to --base-url; images only with --send-images. The API
    key is read from VIPBENCH_LLM_KEY or OPENAI_API_KEY. FILE.report.md states for every text why
    it was kept or dropped.
    """
    from vipbench.cli.commands.symptoms import generate_command

    return generate_command(
        dataset,
        modality,
        model,
        out,
        base_url,
        kind,
        n,
        send_images,
        images,
        consent,
        intersection,
        threshold,
        backbone,
        prompts,
        cassette,
        temperature,
        max_requests,
        timeout,
        data_root,
    )


@symptoms_app.command(short_help="Check a symptom file.")
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False)],
    dataset: Data,
    backbone: Annotated[
        str | None,
        text("--backbone", "NAME", "Also check the token limit of this backbone.", named_backbone),
    ] = None,
    data_root: DataRoot = None,
    allow_code: AllowCode = False,
) -> int:
    """Check for class names, duplicates, texts over the token limit, too few texts, and classes
    with different lengths. Exit status 1 if there are findings."""
    from vipbench.cli.commands.symptoms import check_command

    return check_command(file, dataset, backbone, data_root)


@symptoms_app.command(short_help="Print a symptom set as a table.")
def show(
    dataset: Data,
    file: File = None,
    knowledge: Annotated[
        str,
        text(
            "--knowledge",
            "symptoms|out-of-domain|useless|incorrect",
            "Show what `run --knowledge` uses instead.",
        ),
    ] = "symptoms",
    data_root: DataRoot = None,
) -> int:
    """Print a dataset's symptoms, or those of --symptoms FILE."""
    from vipbench.cli.commands.symptoms import show_command

    return show_command(dataset, file, knowledge, data_root)


@symptoms_app.command(short_help="Compare two symptom files.")
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", show_default=False)],
    dataset: Data,
    data_root: DataRoot = None,
) -> int:
    """Print texts only in A (-) and only in B (+). Exit status 1 if they differ."""
    from vipbench.cli.commands.symptoms import diff_command

    return diff_command(a, b, dataset, data_root)


@symptoms_app.command(short_help="Rank symptoms on the training set.")
def rank(
    dataset: Data,
    backbone: Model = "tiny-clip",
    file: File = None,
    data_root: DataRoot = None,
    allow_code: AllowCode = False,
) -> int:
    """Print the AUROC of each symptom alone, and what its class loses without it."""
    from vipbench.cli.commands.symptoms import rank_command

    return rank_command(dataset, backbone, file, data_root)
