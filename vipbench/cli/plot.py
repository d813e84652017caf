"""`vipbench plot`: the options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from vipbench.cli import options
from vipbench.cli.options import DEFAULT_FOLDER, DefaultFolder, option, out, text


def plot(
    folder: DefaultFolder = DEFAULT_FOLDER,
    kind: Annotated[
        str,
        option(
            "--kind",
            "fewshot|confusion|reliability|cd|bars|knowledge|training",
            "A metric against shots; confusion matrices; reliability diagrams; the "
            "critical-difference diagram over datasets; bars per method, or per kind of "
            "knowledge; loss, accuracies and gradient norm by epoch.",
        ),
    ] = "fewshot",
    out: Annotated[
        Path | None, out("FILE", "Output file: .pdf, .svg or .png. [DIR/KIND.pdf]")
    ] = None,
    metric: Annotated[
        str, option("--metric", "NAME", "Metric of curves, ranks and bars.")
    ] = "accuracy",
    aggregate: Annotated[
        str | None,
        text(
            "--aggregate",
            "ci-seeds|ci-images|ci-both|sd|none",
            "Band of curves and interval of bars: 95 % confidence interval, or standard "
            "deviation over seeds. [ci-seeds; bars: ci-both]",
        ),
    ] = None,
    methods: options.Methods = None,
    datasets: options.Datasets = None,
    backbones: options.Backbones = None,
    shots: options.Shots = None,
    seeds: options.Seeds = None,
) -> int:
    """Draw a figure for a paper and print its caption."""
    from vipbench.cli.commands.plot import plot_command
    from vipbench.results.selection import Selection

    chosen = Selection.of(datasets, backbones, methods, shots, seeds)
    return plot_command(folder, kind, out, metric, aggregate, chosen)
