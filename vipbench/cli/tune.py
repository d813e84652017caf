"""`vipbench tune`: the options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vipbench.cli import grid
from vipbench.cli.options import OUTPUT, AllowCode, DataRoot, ImageRoots, PluginsDir, option


def tune(
    context: typer.Context,
    file: grid.File = None,
    suite: grid.Suite = None,
    methods: grid.Methods = None,
    datasets: grid.Datasets = None,
    backbones: grid.Backbones = None,
    shots: grid.Shots = None,
    seeds: grid.Seeds = None,
    settings: grid.Settings = None,
    data_root: DataRoot = None,
    images: ImageRoots = None,
    symptoms: grid.Symptoms = None,
    descriptions: grid.Descriptions = None,
    templates: grid.Templates = None,
    knowledge: grid.Knowledge = None,
    out: grid.Out = None,
    plugins_dir: PluginsDir = None,
    device: grid.Device = None,
    workers: grid.Workers = None,
    precision: grid.Precision = None,
    feature_precision: grid.FeaturePrecision = None,
    views: grid.Views = None,
    sampler: grid.Sampler = None,
    validation: grid.Validation = None,
    shots_unit: grid.ShotsUnit = None,
    allow_group_overlap: grid.AllowGroupOverlap = None,
    profile: grid.Profile = None,
    cell_timeout: grid.CellTimeout = None,
    trials: Annotated[int, option("--trials", "N", "Trials per method.")] = 10,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Suite to write.", rich_help_panel=OUTPUT
        ),
    ] = Path("tuned.yaml"),
    metric: Annotated[str, option("--metric", "NAME", "Metric to maximise.")] = "accuracy",
    ranges: Annotated[
        list[str] | None,
        option(
            "--range",
            "METHOD.HPARAM=LOW..HIGH",
            "Search range, or METHOD.HPARAM=A|B|C; repeatable.",
        ),
    ] = None,
    search_seed: Annotated[int, option("--search-seed", "N", "Seed of the search.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the trials; run nothing.")
    ] = False,
    allow_code: AllowCode = False,
) -> int:
    """Try equally many settings of every method, and save the best of each as a suite.

    Trials are scored on validation images; the test split is not read. The first trial is the
    settings as given. A trial that is done is not run again. --out is the trials' folder.
    """
    from vipbench.cli.commands.suites import spec_of_flags

    spec = spec_of_flags(context)
    from vipbench.cli.commands.tune import Asked, trials_spec, tune_command

    asked = Asked(trials, output, metric, search_seed, ranges or (), dry_run)
    return tune_command(trials_spec(spec, out is not None), asked)
