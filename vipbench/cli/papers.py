"""The commands that make what goes into a paper, and their options; what they do is in modules of
their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A results folder.")]
DEFAULT = Path("vipbench-results")


def _text(flag: str, metavar: str, help: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=help, show_default=False)


Datasets = Annotated[str | None, _text("--datasets", "A,B", "These datasets alone.")]
Backbones = Annotated[str | None, _text("--backbones", "A,B", "These backbones alone.")]
Methods = Annotated[str | None, _text("--methods", "A,B", "These rows alone.")]
Shots = Annotated[str | None, _text("--shots", "1,2,full", "These shots alone; 0 shots stay.")]
Seeds = Annotated[str | None, _text("--seeds", "1,2 or 1-8", "These seeds alone.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(short_help="Print the table of a results folder.")(table)
    app.command(short_help="Say how one method compares with others.")(compare)
    app.command(short_help="Draw curves, confusion, reliability or ranks.")(plot)


def table(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", show_default=False, help="A results folder.")
    ],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="text|github|latex|html|csv|json",
            help="The form of the table.",
        ),
    ] = "text",
    metric: Annotated[
        str | None,
        _text("--metric", "A,B", "Metrics, such as accuracy,auroc. [accuracy,macro_f1]"),
    ] = None,
    preset: Annotated[
        str | None,
        _text(
            "--preset",
            "comparison|ablation|fewshot|base-to-new|transfer|knowledge",
            "The shape of a table in a paper; other flags change it.",
        ),
    ] = None,
    rows: Annotated[
        str | None,
        _text(
            "--rows", "A,B", "What goes down: method, dataset, backbone, shots, metric. [method]"
        ),
    ] = None,
    cols: Annotated[
        str | None,
        _text("--cols", "A,B", "What goes across, outermost first. [what is not in --rows]"),
    ] = None,
    aggregate: Annotated[
        str,
        typer.Option(
            "--aggregate",
            metavar="sd|ci-seeds|ci-images|ci-both|none",
            help="What stands beside a mean: the sample standard deviation over seeds, or a 95 % "
            "confidence interval for new seeds, new test images, or both.",
        ),
    ] = "sd",
    highlight: Annotated[
        str,
        typer.Option(
            "--highlight",
            metavar="best|significant|none",
            help="Bold: the best as shown, or all that none is significantly better than.",
        ),
    ] = "best",
    average: Annotated[
        bool, typer.Option("--average", help="Add the mean over the datasets.")
    ] = False,
    decimals: Annotated[int, typer.Option("--decimals", metavar="N", help="Decimals shown.")] = 1,
    methods: Methods = None,
    datasets: Datasets = None,
    backbones: Backbones = None,
    shots: Shots = None,
    seeds: Seeds = None,
) -> int:
    """Print the table of a results folder."""
    from vipbench.cli.selection import Selection
    from vipbench.cli.table import table_command

    chosen = Selection.of(datasets, backbones, methods, shots, seeds)
    shape = {"rows": rows, "cols": cols, "metrics": metric}
    looks = {"aggregate": aggregate, "highlight": highlight, "average": average}
    return table_command(folder, format, preset, shape, looks, decimals, chosen)


def compare(
    a: Annotated[str, typer.Argument(metavar="A", show_default=False, help="A row's label.")],
    b: Annotated[
        str, typer.Argument(metavar="B", show_default=False, help="Others: B, B,C or all.")
    ],
    folder: Folder = DEFAULT,
    metric: Annotated[
        str, typer.Option("--metric", metavar="A,B", help="Metrics, such as accuracy,auroc.")
    ] = "accuracy",
    datasets: Datasets = None,
    backbones: Backbones = None,
    shots: Shots = None,
    seeds: Seeds = None,
    population: Annotated[
        str,
        typer.Option(
            "--population",
            metavar="both|images|seeds|average|datasets|datasets-bootstrap",
            help="What is drawn anew: seeds and test images; one of them; both, averaged over "
            "these datasets; or datasets (Wilcoxon's test, or a bootstrap).",
        ),
    ] = "both",
    level: Annotated[
        float, typer.Option("--level", metavar="SHARE", help="The confidence level.")
    ] = 0.95,
    format: Annotated[
        str, typer.Option("--format", metavar="text|github|latex|csv|json", help="The form.")
    ] = "text",
) -> int:
    """Write the sentence for the paper: effect, interval, n, corrected p, and the family of
    comparisons that it was corrected over."""
    from vipbench.cli.compare import compare_command
    from vipbench.cli.selection import Selection

    chosen = Selection.of(datasets, backbones, None, shots, seeds)
    return compare_command(a, b, folder, metric, chosen, population, level, format)


def plot(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", show_default=False, help="A results folder.")
    ],
    kind: Annotated[
        str,
        typer.Option(
            "--kind",
            metavar="fewshot|confusion|reliability|cd|bars|knowledge",
            help="A metric against shots; confusion matrices; reliability diagrams; the "
            "critical-difference diagram over datasets; a bar a method, or a bar a kind of "
            "knowledge.",
        ),
    ] = "fewshot",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="A .pdf, .svg or .png. [DIR/KIND.pdf]",
            show_default=False,
        ),
    ] = None,
    metric: Annotated[
        str, typer.Option("--metric", metavar="NAME", help="What curves, ranks and bars show.")
    ] = "accuracy",
    aggregate: Annotated[
        str | None,
        _text(
            "--aggregate",
            "ci-seeds|ci-images|ci-both|sd|none",
            "The band of curves and the interval of bars: a 95 % confidence interval, or the "
            "deviation over seeds. [ci-seeds; of bars ci-both]",
        ),
    ] = None,
    methods: Methods = None,
    datasets: Datasets = None,
    backbones: Backbones = None,
    shots: Shots = None,
    seeds: Seeds = None,
) -> int:
    """Draw a figure for a paper and print its caption."""
    from vipbench.cli.plot import plot_command
    from vipbench.cli.selection import Selection

    chosen = Selection.of(datasets, backbones, methods, shots, seeds)
    return plot_command(folder, kind, out, metric, aggregate, chosen)
