"""The commands and their options; what they do is in the modules beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vipbench import __version__
from vipbench.cli import audit, explaining, papers, ready, sharing, workshop
from vipbench.cli.cache import cache_app
from vipbench.cli.ready import Offline
from vipbench.cli.symptoms import symptoms_app
from vipbench.fetching import offline as connections

app = typer.Typer(
    name="vipbench",
    help="Few-shot adaptation of CLIP-like models in medical imaging, compared honestly.",
    epilog=(
        "`vipbench run` alone runs the bundled demo. Exit status: 0 done, 1 some cells failed, "
        "2 it cannot be done as asked, 130 interrupted."
    ),
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# What `vipbench run` takes and a suite does not hold under that name.
NOT_OF_THE_SUITE = (
    "context",
    "file",
    "suite",
    "settings",
    "dry_run",
    "estimate",
    "no_retry",
    "offline",
)

PluginsDir = Annotated[
    Path | None,
    typer.Option(
        "--plugins-dir",
        metavar="DIR",
        envvar="VIPBENCH_PLUGINS_DIR",
        help="Load the plugins in DIR's *.py files; they are code, and are run.",
    ),
]


def _text(flag: str, metavar: str, help: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=help, show_default=False)


def _version(asked: bool) -> None:
    if asked:
        print(f"vipbench {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


@app.command(short_help="Run a comparison and print its table.")
def run(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[SUITE]", show_default=False, help="The same as --suite."),
    ] = None,
    suite: Annotated[
        Path | None,
        _text("--suite", "FILE", "A YAML suite; flags override it. A run saves its own."),
    ] = None,
    methods: Annotated[
        str | None,
        _text("--methods", "A,B", "Such as coop,vip,vip[context=off]; +coop adds."),
    ] = None,
    datasets: Annotated[
        str | None,
        _text("--datasets", "A,B", "Datasets, such as synthderm or npz:FILE."),
    ] = None,
    backbones: Annotated[
        str | None,
        _text("--backbones", "A,B", "Backbones, such as openclip:ViT-B-16/openai."),
    ] = None,
    shots: Annotated[
        str | None,
        _text("--shots", "1,2,full", "Training images a class; full takes all. [1,2,4,8,16]"),
    ] = None,
    seeds: Annotated[
        str | None, _text("--seeds", "1,2 or 1-8", "Seeds of support sets and training. [1,2,3]")
    ] = None,
    settings: Annotated[
        list[str] | None,
        _text("--set", "METHOD.HPARAM=VALUE", "Set a hyperparameter; repeatable."),
    ] = None,
    data_root: Annotated[
        Path | None, _text("--data-root", "DIR", "Where datasets are looked for.")
    ] = None,
    symptoms: Annotated[
        list[str] | None,
        _text("--symptoms", "[DATASET=]FILE", "A symptom file (JSON); repeatable."),
    ] = None,
    descriptions: Annotated[
        list[str] | None,
        _text("--descriptions", "[DATASET=]FILE", "Texts that hold the class name; repeatable."),
    ] = None,
    knowledge: Annotated[
        str | None,
        _text(
            "--knowledge",
            "symptoms|out-of-domain|useless|incorrect",
            "What stands in the symptoms' place; several with commas. [symptoms]",
        ),
    ] = None,
    out: Annotated[
        Path | None, _text("--out", "DIR", "The results folder. [./vipbench-results]")
    ] = None,
    plugins_dir: PluginsDir = None,
    device: Annotated[
        str | None,
        _text("--device", "auto|cpu|cuda", "Where to compute; also cuda:0,cuda:2. [auto]"),
    ] = None,
    workers: Annotated[
        int | None,
        _text("--workers", "N", "Processes that run cells at once. [1, or one a CUDA device]"),
    ] = None,
    precision: Annotated[
        str | None, _text("--precision", "fp32|bf16", "Of the training text pass. [fp32]")
    ] = None,
    views: Annotated[
        str | None,
        _text(
            "--views",
            "per-epoch|none|V",
            "Augmented views of a training image: a new one each epoch, none, V. [per-epoch]",
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        _text(
            "--protocol",
            "NAME[source=DATASET]",
            "few-shot, full, base-to-new, cross-dataset, domain-shift, imbalanced or "
            "validation-free. [few-shot]",
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        _text("--sampler", "nested|coop", "How support sets are drawn. [nested]"),
    ] = None,
    validation: Annotated[
        str | None,
        _text(
            "--validation",
            "none|k|min(k,4)|full",
            "Validation images a class, of k shots. [min(k,4)]",
        ),
    ] = None,
    selection: Annotated[
        str | None,
        _text("--selection", "last|best_val", "Which epoch is scored. [last]"),
    ] = None,
    score_on: Annotated[
        str | None,
        _text(
            "--score-on",
            "test|val:k|val:min(k,4)|val:full",
            "Validation images a class in the test split's place. [test]",
        ),
    ] = None,
    shots_unit: Annotated[
        str | None,
        _text("--shots-unit", "image|group", "What shots count: images or patients. [image]"),
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
        _text(
            "--profile",
            "matched|published|quick",
            "One protocol for all rows, each paper's own, or cheap settings. [matched]",
        ),
    ] = None,
    cell_timeout: Annotated[
        float | None,
        _text("--cell-timeout", "SECONDS", "How long one cell may take. [3600]"),
    ] = None,
    tables: Annotated[
        str | None,
        _text("--tables", "A,B", "Further tables to leave in --out: presets of `table`."),
    ] = None,
    figures: Annotated[
        str | None, _text("--figures", "A,B", "Figures to leave in --out: kinds of `plot`.")
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
    offline: Offline = False,
) -> int:
    """Run a grid of methods, datasets, backbones, shots and seeds, and print its table.

    Cells that are done are not run again. Without a suite, methods, datasets or backbones it is
    the bundled demo.
    """
    values = locals()
    if offline:
        connections.forbid()
    from vipbench.cli.suites import spec_of_flags

    kept = ("file", "suite", "settings")
    flags = {k: v for k, v in values.items() if k in kept or k not in NOT_OF_THE_SUITE}
    spec = spec_of_flags(context, flags)
    # Only now, so that a misspelled key is told at once.
    from vipbench.cli.run import run_command

    return run_command(spec, dry_run, retry=not no_retry, estimate=estimate)


@app.command("list", short_help="List methods, backbones and datasets.")
def list_(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="[methods|backbones|datasets]", show_default=False, help="What; by default all."
        ),
    ] = None,
    plugins_dir: PluginsDir = None,
    format: Annotated[
        str,
        typer.Option("--format", metavar="text|json", help="json has every hyperparameter."),
    ] = "text",
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", help="Of methods, paper, year, trainable parameters, needs and cost."
        ),
    ] = False,
) -> int:
    """List the methods, backbones and datasets that there are, plugins included."""
    from vipbench.cli.listing import list_command

    return list_command(kind, plugins_dir, format, verbose)


papers.register(app)
sharing.register(app)
audit.register(app)
app.add_typer(cache_app, name="cache")
app.add_typer(symptoms_app, name="symptoms")
explaining.register(app)
workshop.register(app, run, NOT_OF_THE_SUITE)
ready.register(app)
