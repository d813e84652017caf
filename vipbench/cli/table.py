"""`vipbench table`: the options."""

from __future__ import annotations

from typing import Annotated

import typer

from vipbench.cli import options
from vipbench.cli.options import DEFAULT_FOLDER, DefaultFolder, option, text


def table(
    folder: DefaultFolder = DEFAULT_FOLDER,
    format: Annotated[
        str,
        option("--format", "text|github|latex|html|csv|json", "Output format."),
    ] = "text",
    metric: Annotated[
        str | None,
        text("--metric", "A,B", "Metrics, such as accuracy,auroc. [accuracy,macro_f1]"),
    ] = None,
    preset: Annotated[
        str | None,
        text(
            "--preset",
            "comparison|ablation|fewshot|base-to-new|transfer|knowledge",
            "Table layout as in papers; other flags modify it.",
        ),
    ] = None,
    rows: Annotated[
        str | None,
        text("--rows", "A,B", "Row axes: method, dataset, backbone, shots, metric, part. [method]"),
    ] = None,
    cols: Annotated[
        str | None,
        text("--cols", "A,B", "Column axes, outermost first. [those not in --rows]"),
    ] = None,
    aggregate: Annotated[
        str,
        option(
            "--aggregate",
            "sd|ci-seeds|ci-images|ci-both|none",
            "What to show beside a mean: sample standard deviation over seeds, or a 95 % "
            "confidence interval for new seeds, new test images, or both.",
        ),
    ] = "sd",
    highlight: Annotated[
        str,
        option(
            "--highlight",
            "best|significant|none",
            "What to print in bold: the best value, or every method that none significantly beats.",
        ),
    ] = "best",
    average: Annotated[bool, typer.Option("--average", help="Add the mean over datasets.")] = False,
    decimals: Annotated[int, option("--decimals", "N", "Number of decimals.")] = 1,
    superseded: Annotated[
        bool,
        typer.Option(
            "--superseded",
            help="List the superseded records, which tables leave out.",
        ),
    ] = False,
    methods: options.Methods = None,
    datasets: options.Datasets = None,
    backbones: options.Backbones = None,
    shots: options.Shots = None,
    seeds: options.Seeds = None,
) -> int:
    """Print the table of a results folder."""
    from vipbench.cli.commands.table import superseded_command, table_command
    from vipbench.results.selection import Selection

    if superseded:
        return superseded_command(folder)
    chosen = Selection.of(datasets, backbones, methods, shots, seeds)
    shape = {"rows": rows, "cols": cols, "metrics": metric}
    looks = {"aggregate": aggregate, "highlight": highlight, "average": average}
    return table_command(folder, format, preset, shape, looks, decimals, chosen)
