"""`vipbench compare`: the options."""

from __future__ import annotations

from typing import Annotated

import typer

from vipbench.cli import options
from vipbench.cli.options import DEFAULT_FOLDER, DefaultFolder, option


def compare(
    a: Annotated[
        str, typer.Argument(metavar="A", show_default=False, help="Label of a table row.")
    ],
    b: Annotated[
        str,
        typer.Argument(
            metavar="B", show_default=False, help="Labels to compare with: B, B,C or all."
        ),
    ],
    folder: DefaultFolder = DEFAULT_FOLDER,
    metric: Annotated[
        str, option("--metric", "A,B", "Metrics, such as accuracy,auroc.")
    ] = "accuracy",
    datasets: options.Datasets = None,
    backbones: options.Backbones = None,
    shots: options.Shots = None,
    seeds: options.Seeds = None,
    population: Annotated[
        str,
        option(
            "--population",
            "both|images|seeds|average|datasets|datasets-bootstrap",
            "The population that the test generalises to: seeds and test images; one of "
            "them; both, averaged over these datasets; or datasets (Wilcoxon or bootstrap).",
        ),
    ] = "both",
    level: Annotated[float, option("--level", "SHARE", "The confidence level.")] = 0.95,
    format: Annotated[
        str, option("--format", "text|github|latex|csv|json", "Output format.")
    ] = "text",
) -> int:
    """Print a citable sentence: effect, interval, n, corrected p, and the family of comparisons
    of the correction."""
    from vipbench.cli.commands.compare import compare_command
    from vipbench.results.selection import Selection

    chosen = Selection.of(datasets, backbones, None, shots, seeds)
    return compare_command(a, b, folder, metric, chosen, population, level, format)
