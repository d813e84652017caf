"""`vipbench run`: the options."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from vipbench.cli import grid
from vipbench.cli.options import (
    CELLS,
    CLUSTER,
    MACHINE,
    AllowCode,
    DataRoot,
    ImageRoots,
    Offline,
    PluginsDir,
    number,
    text,
)
from vipbench.errors import UsageError
from vipbench.fetching import offline as connections
from vipbench.text import clean


def run(
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
    protocol: grid.Protocol = None,
    sampler: grid.Sampler = None,
    validation: grid.Validation = None,
    selection: grid.Selection = None,
    score_on: grid.ScoreOn = None,
    shots_unit: grid.ShotsUnit = None,
    allow_group_overlap: grid.AllowGroupOverlap = None,
    profile: grid.Profile = None,
    cell_timeout: grid.CellTimeout = None,
    tables: grid.Tables = None,
    figures: grid.Figures = None,
    track: grid.Track = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="List the cells and their state; run nothing.",
            rich_help_panel=CELLS,
        ),
    ] = False,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            help="With --dry-run: estimate time, disk and memory.",
            rich_help_panel=CELLS,
        ),
    ] = False,
    no_retry: Annotated[
        bool,
        typer.Option("--no-retry", help="Do not rerun failed cells.", rich_help_panel=CELLS),
    ] = False,
    use_imported: Annotated[
        bool,
        typer.Option(
            "--use-imported", help="Count imported results as done.", rich_help_panel=CELLS
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug",
            help="Run only the first cell, in this process, so that print and breakpoint() work; "
            "save no result.",
            rich_help_panel=MACHINE,
        ),
    ] = False,
    pdb: Annotated[
        bool,
        typer.Option(
            "--pdb",
            help="With --debug: open the debugger on an error.",
            rich_help_panel=MACHINE,
        ),
    ] = False,
    executor: Annotated[
        str | None,
        text("--executor", "slurm|ray|MODULE:FUNCTION", "Where to run the parts.", panel=CLUSTER),
    ] = None,
    jobs: Annotated[
        int | None,
        text("--jobs", "N", "Split the run into N parts.", number(1, 10**6), panel=CLUSTER),
    ] = None,
    slurm: Annotated[
        str | None,
        text("--slurm", "KEY=VALUE,...", "Resources that each job requests.", panel=CLUSTER),
    ] = None,
    cache_local: Annotated[
        bool,
        typer.Option(
            "--cache-local",
            help="Keep a copy of the features in $TMPDIR on each node.",
            rich_help_panel=CLUSTER,
        ),
    ] = False,
    submit_only: Annotated[
        bool,
        typer.Option("--submit-only", help="Submit and return.", rich_help_panel=CLUSTER),
    ] = False,
    print_script: Annotated[
        bool,
        typer.Option(
            "--print-script",
            help="Print the batch script; submit nothing.",
            rich_help_panel=CLUSTER,
        ),
    ] = False,
    offline: Offline = False,
    allow_code: AllowCode = False,
) -> int:
    """Run a grid of methods, datasets, backbones, shots and seeds, and print its table.

    Finished cells are not rerun. Without a suite, methods, datasets and backbones, the bundled demo
    runs.
    """
    if offline:
        connections.forbid()
    if pdb and not debug:
        raise UsageError("--pdb requires --debug")
    others = {
        "--dry-run": dry_run,
        "--estimate": estimate,
        "--no-retry": no_retry,
        "--use-imported": use_imported,
    }
    if debug and any(others.values()):
        refused = " and ".join(flag for flag, given in others.items() if given)
        raise UsageError(f"--debug runs one cell and reads no results; leave out {refused}")
    from vipbench.cli.commands.suites import spec_of_flags

    spec = spec_of_flags(context)
    if (spec.executor is None and (submit_only or print_script)) or (submit_only and print_script):
        raise UsageError(
            "--submit-only and --print-script require --executor, and exclude each other"
        )
    if print_script:
        from vipbench.engine.cluster.run import print_script as script_of

        def say(line: str) -> None:
            print(clean(line), file=sys.stderr)

        print(script_of(spec, say, use_imported), end="")
        return 0
    if debug:
        from vipbench.cli.commands.debug import debug_command

        return debug_command(spec, post_mortem=pdb)
    # Imported after the flags are checked, so that a misspelled key is answered at once.
    from vipbench.cli.commands.run import run_command

    return run_command(
        spec,
        dry_run,
        retry=not no_retry,
        estimate=estimate,
        imported=use_imported,
        submit_only=submit_only,
    )
