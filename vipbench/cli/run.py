"""`vipbench run`: the options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vipbench.cli.options import NOT_OF_THE_SUITE, AllowCode, ImageRoots, Offline, PluginsDir, text
from vipbench.fetching import offline as connections


def run(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[SUITE]", show_default=False, help="The same as --suite."),
    ] = None,
    suite: Annotated[
        Path | None,
        text("--suite", "FILE", "A YAML suite; flags override it. A run saves its own."),
    ] = None,
    methods: Annotated[
        str | None,
        text("--methods", "A,B", "Such as coop,vip,vip[context=off]; +coop adds."),
    ] = None,
    datasets: Annotated[
        str | None,
        text("--datasets", "A,B", "Datasets, such as synthderm or npz:FILE."),
    ] = None,
    backbones: Annotated[
        str | None,
        text("--backbones", "A,B", "Backbones, such as openclip:ViT-B-16/openai."),
    ] = None,
    shots: Annotated[
        str | None,
        text("--shots", "1,2,full", "Training images a class; full takes all. [1,2,4,8,16]"),
    ] = None,
    seeds: Annotated[
        str | None, text("--seeds", "1,2 or 1-8", "Seeds of support sets and training. [1,2,3]")
    ] = None,
    settings: Annotated[
        list[str] | None,
        text("--set", "METHOD.HPARAM=VALUE", "Set a hyperparameter; repeatable."),
    ] = None,
    data_root: Annotated[
        Path | None, text("--data-root", "DIR", "Where datasets are looked for.")
    ] = None,
    images: ImageRoots = None,
    symptoms: Annotated[
        list[str] | None,
        text("--symptoms", "[DATASET=]FILE", "A symptom file (JSON); repeatable."),
    ] = None,
    descriptions: Annotated[
        list[str] | None,
        text("--descriptions", "[DATASET=]FILE", "Texts that hold the class name; repeatable."),
    ] = None,
    knowledge: Annotated[
        str | None,
        text(
            "--knowledge",
            "symptoms|out-of-domain|useless|incorrect",
            "What stands in the symptoms' place; several with commas. [symptoms]",
        ),
    ] = None,
    out: Annotated[
        Path | None, text("--out", "DIR", "The results folder. [./vipbench-results]")
    ] = None,
    plugins_dir: PluginsDir = None,
    device: Annotated[
        str | None,
        text("--device", "auto|cpu|cuda", "Where to compute; also cuda:0,cuda:2. [auto]"),
    ] = None,
    workers: Annotated[
        int | None,
        text("--workers", "N", "Processes that run cells at once. [1, or one a CUDA device]"),
    ] = None,
    precision: Annotated[
        str | None, text("--precision", "fp32|bf16", "Of the training text pass. [fp32]")
    ] = None,
    views: Annotated[
        str | None,
        text(
            "--views",
            "per-epoch|none|V",
            "Augmented views of a training image: a new one each epoch, none, V. [per-epoch]",
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        text(
            "--protocol",
            "NAME[source=DATASET]",
            "few-shot, full, base-to-new, cross-dataset, domain-shift, imbalanced or "
            "validation-free. [few-shot]",
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        text("--sampler", "nested|coop", "How support sets are drawn. [nested]"),
    ] = None,
    validation: Annotated[
        str | None,
        text(
            "--validation",
            "none|k|min(k,4)|full",
            "Validation images a class, of k shots. [min(k,4)]",
        ),
    ] = None,
    selection: Annotated[
        str | None,
        text("--selection", "last|best_val", "Which epoch is scored. [last]"),
    ] = None,
    score_on: Annotated[
        str | None,
        text(
            "--score-on",
            "test|val:k|val:min(k,4)|val:full",
            "Validation images a class in the test split's place. [test]",
        ),
    ] = None,
    shots_unit: Annotated[
        str | None,
        text("--shots-unit", "image|group", "What shots count: images or patients. [image]"),
    ] = None,
    allow_group_overlap: Annotated[
        bool | None,
        typer.Option(
            "--allow-group-overlap",
            help="Run although splits share groups (patients).",
            show_default=False,
        ),
    ] = None,
    profile: Annotated[
        str | None,
        text(
            "--profile",
            "matched|published|quick",
            "One protocol for all rows, each paper's own, or cheap settings. [matched]",
        ),
    ] = None,
    cell_timeout: Annotated[
        float | None,
        text("--cell-timeout", "SECONDS", "How long one cell may take. [3600]"),
    ] = None,
    tables: Annotated[
        str | None,
        text("--tables", "A,B", "Further tables to leave in --out: presets of `table`."),
    ] = None,
    figures: Annotated[
        str | None, text("--figures", "A,B", "Figures to leave in --out: kinds of `plot`.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the cells and their state; run nothing.")
    ] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="With --dry-run: time, disk and memory to expect.")
    ] = False,
    no_retry: Annotated[
        bool, typer.Option("--no-retry", help="Leave cells that failed before as they are.")
    ] = False,
    use_imported: Annotated[
        bool,
        typer.Option("--use-imported", help="Count results that others handed in as done."),
    ] = False,
    offline: Offline = False,
    allow_code: AllowCode = False,
) -> int:
    """Run a grid of methods, datasets, backbones, shots and seeds, and print its table.

    Cells that are done are not run again. Without a suite, methods, datasets or backbones it is
    the bundled demo.
    """
    values = locals()
    if offline:
        connections.forbid()
    from vipbench.cli.commands.suites import spec_of_flags

    kept = ("file", "suite", "settings")
    flags = {k: v for k, v in values.items() if k in kept or k not in NOT_OF_THE_SUITE}
    spec = spec_of_flags(context, flags)
    # Only now, so that a misspelled key is told at once.
    from vipbench.cli.commands.run import run_command

    return run_command(spec, dry_run, retry=not no_retry, estimate=estimate, imported=use_imported)
