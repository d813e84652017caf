"""`vipbench symptoms` and its subcommands: the options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vipbench.cli.options import AllowCode, DataRoot, named_backbone, out, text

symptoms_app = typer.Typer(
    help="Make, check, show, compare and rank symptom sets.",
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Data = Annotated[str, text("--dataset", "NAME", "The dataset, for its classes.")]
Model = Annotated[
    str,
    text("--backbone", "NAME", "A backbone with a text tower. [tiny-clip]", named_backbone),
]
File = Annotated[Path | None, text("--symptoms", "FILE", "Instead of the dataset's own set.")]


@symptoms_app.command(short_help="Have a language model write symptoms.")
def generate(
    dataset: Data,
    modality: Annotated[str, text("--modality", "WORDS", "Such as 'dermoscopic images'.")],
    model: Annotated[str, text("--model", "NAME", "The language model, as its server names it.")],
    out: Annotated[Path, out("FILE", "The symptom file.")],
    base_url: Annotated[
        str | None,
        text(
            "--base-url", "URL", "The server; there is no default. Without it --cassette replays."
        ),
    ] = None,
    kind: Annotated[str, text("--kind", "symptoms|descriptions", "What. [symptoms]")] = "symptoms",
    n: Annotated[
        int | None, text("-n", "N", "Texts a class to ask for. [10, descriptions 50]")
    ] = None,
    send_images: Annotated[
        bool, typer.Option("--send-images", help="Stage (b): show training images to the model.")
    ] = False,
    images: Annotated[
        str, text("--images", "train|support:K:SEED", "Which training images. [train]")
    ] = "train",
    consent: Annotated[
        str | None, text("--consent", "HOST", "Type the host here that images may be sent to.")
    ] = None,
    intersection: Annotated[
        str, text("--intersection", "clip|model", "How stage (c) matches features. [clip]")
    ] = "clip",
    threshold: Annotated[
        float, text("--threshold", "X", "Similarity that keeps a feature. [0.25]")
    ] = 0.25,
    backbone: Model = "tiny-clip",
    prompts: Annotated[Path | None, text("--prompts", "FILE", "Your own prompts (JSON).")] = None,
    cassette: Annotated[
        Path | None, text("--cassette", "FILE", "Keep replies there, and replay those it has.")
    ] = None,
    temperature: Annotated[float | None, text("--temperature", "T", "Of sampling.")] = None,
    max_requests: Annotated[
        int, text("--max-requests", "N", "HTTP requests, tries included. [100]")
    ] = 100,
    timeout: Annotated[float, text("--timeout", "SECONDS", "For one reply. [120]")] = 120.0,
    data_root: DataRoot = None,
    allow_code: AllowCode = False,
) -> int:
    """Have a language model write the symptoms (or descriptions) of a dataset's classes.

    Nothing leaves this machine but for --base-url: class names and modality; images only with
    --send-images. The key comes from VIPBENCH_LLM_KEY or OPENAI_API_KEY. FILE.report.md says of
    every text why it was kept or dropped.
    """
    from vipbench.cli.commands.symptoms import generate_command

    return generate_command(
        dataset, modality, model, out, base_url, kind, n, send_images, images, consent,
        intersection, threshold, backbone, prompts, cassette, temperature, max_requests, timeout,
        data_root,
    )  # fmt: skip


@symptoms_app.command(short_help="Check a symptom file.")
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False)],
    dataset: Data,
    backbone: Annotated[
        str | None,
        text("--backbone", "NAME", "Whose token limit to check as well.", named_backbone),
    ] = None,
    data_root: DataRoot = None,
    allow_code: AllowCode = False,
) -> int:
    """Look for class names, duplicates, texts over the token limit, too few texts, and classes
    with unlike lengths. Exit status 1 where there are findings."""
    from vipbench.cli.commands.symptoms import check_command

    return check_command(file, dataset, backbone, data_root)


@symptoms_app.command(short_help="Print a symptom set as a table.")
def show(
    dataset: Data,
    file: File = None,
    knowledge: Annotated[
        str,
        text("--knowledge", "symptoms|out-of-domain|useless|incorrect", "As `run` replaces them."),
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
    """Print what only A (-) and only B (+) says. Exit status 1 where they differ."""
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
    """How well each symptom alone tells its class (AUROC), and what the class loses without it."""
    from vipbench.cli.commands.symptoms import rank_command

    return rank_command(dataset, backbone, file, data_root)
