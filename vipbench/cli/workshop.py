"""The commands for looking inside, writing plugins and being ready, and their options; what they
do is in modules of their own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer


def register(app: typer.Typer, run: Callable[..., int], not_of_the_suite: tuple[str, ...]) -> None:
    """Add the commands to the command line. run: `vipbench run`, whose selection flags `debug`
    takes over; not_of_the_suite: its parameters that are no field of a RunSpec."""
    app.command()(show)
    debug = _debug(run, not_of_the_suite)
    app.command(short_help="Choose hyperparameters on validation images.")(
        _tune(run, not_of_the_suite)
    )
    app.command()(check)
    app.command()(new)
    app.add_typer(dataset_app, name="dataset")
    app.command("debug", short_help="Run one cell in the foreground.")(debug)


def show(
    key: Annotated[
        str, typer.Argument(metavar="KEY", show_default=False, help="A key, or how it begins.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A results folder.")] = Path(
        "vipbench-results"
    ),
    format: Annotated[
        str, typer.Option("--format", metavar="text|json", help="The form.")
    ] = "text",
) -> int:
    """Print a record whole, with its errors class by class."""
    from vipbench.cli.show import show_command

    return show_command(key, folder, format)


def check(
    what: Annotated[
        str,
        typer.Argument(
            metavar="FILE_OR_NAME", show_default=False, help="A plugin's file, or NAME[:ARG]."
        ),
    ],
    plugins_dir: Annotated[
        Path | None,
        typer.Option(
            "--plugins-dir", metavar="DIR", envvar="VIPBENCH_PLUGINS_DIR", help="Where NAME is."
        ),
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option("--data-root", metavar="DIR", show_default=False, help="Where data lie."),
    ] = None,
) -> int:
    """Hold a method, backbone or dataset to the rules that all keep to."""
    from vipbench.cli.authoring import check_command

    return check_command(what, plugins_dir, data_root)


def new(
    kind: Annotated[
        str,
        typer.Argument(metavar="method|dataset|backbone", show_default=False, help="Of what."),
    ],
    name: Annotated[
        str, typer.Argument(metavar="NAME", show_default=False, help="Its command-line word.")
    ],
    folder: Annotated[
        Path, typer.Option("--plugins-dir", metavar="DIR", help="Where the file is written.")
    ] = Path(),
) -> int:
    """Write a plugin file that keeps every rule, to start from."""
    from vipbench.cli.authoring import new_command

    return new_command(kind, name, folder)


def _with_flags_of(
    command: Callable[..., int], run: Callable[..., int], own: tuple[str, ...], **more: Any
) -> Callable[..., int]:
    """`command` with the flags of `run` that choose cells; more: flag -> (default, annotation)."""
    hints = get_type_hints(run, include_extras=True)
    kept = [
        p.replace(annotation=hints[name])
        for name, p in inspect.signature(run).parameters.items()
        if name in ("context", "file", "suite", "settings") or name not in own
    ]
    kept += [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
        )
        for name, (default, annotation) in more.items()
    ]
    vars(command)["__signature__"] = inspect.Signature(kept, return_annotation=int)
    command.__annotations__ = {p.name: p.annotation for p in kept}
    return command


def _debug(run: Callable[..., int], own: tuple[str, ...]) -> Callable[..., int]:
    """`vipbench debug`."""

    def debug(context: typer.Context, **values: Any) -> int:
        """Run one cell alone in this process, where print and pdb work, and keep nothing.

        The cell is the first that can be run of those that the flags choose.
        """
        from vipbench.cli.debug import debug_command
        from vipbench.cli.suites import spec_of_flags

        post_mortem = values.pop("pdb")
        return debug_command(spec_of_flags(context, values), post_mortem)

    pdb = typer.Option("--pdb", help="Where it fails, stay there in the debugger.")
    return _with_flags_of(debug, run, own, pdb=(False, Annotated[bool, pdb]))


def _tune(run: Callable[..., int], own: tuple[str, ...]) -> Callable[..., int]:
    """`vipbench tune`."""

    def tune(context: typer.Context, **values: Any) -> int:
        """Try as many settings of every method, and save the best of each as a suite.

        Trials are scored on validation images; the test split is not read. The first trial is the
        settings as given. A trial that is done is not run again. --out is the trials' folder.
        """
        names = ("trials", "output", "metric", "search_seed", "range", "dry_run")
        mine = {name: values.pop(name) for name in names}
        from vipbench.cli.suites import spec_of_flags

        spec = spec_of_flags(context, values)
        from vipbench.cli.tune import options, trials_spec, tune_command

        return tune_command(trials_spec(spec, values["out"] is not None), options(mine))

    def option(kind: Any, *flags: str, metavar: str | None, help: str) -> Any:
        return Annotated[kind, typer.Option(*flags, metavar=metavar, help=help)]

    return _with_flags_of(
        tune,
        run,
        (*own, "score_on", "selection", "protocol", "tables", "figures"),
        trials=(10, option(int, "--trials", metavar="N", help="Of each method.")),
        output=(
            Path("tuned.yaml"),
            option(Path, "-o", "--output", metavar="FILE", help="The suite to write."),
        ),
        metric=("accuracy", option(str, "--metric", metavar="NAME", help="What is to be highest.")),
        range=(
            None,
            option(
                list[str] | None,
                "--range",
                metavar="METHOD.HPARAM=LOW..HIGH",
                help="Where to look, or METHOD.HPARAM=A|B|C; repeatable.",
            ),
        ),
        search_seed=(1, option(int, "--search-seed", metavar="N", help="Other settings to try.")),
        dry_run=(
            False,
            option(bool, "--dry-run", metavar=None, help="List the trials; run nothing."),
        ),
    )


dataset_app = typer.Typer(help="Prepare data.", add_completion=False, rich_markup_mode=None)


@dataset_app.callback()
def _dataset() -> None:
    """Prepare data."""


@dataset_app.command()
def split(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", show_default=False, help="csv:PATH or folder:PATH.")
    ],
    group: Annotated[
        str | None,
        typer.Option("--group", metavar="COLUMN", help="Patients or lesions; none is in two."),
    ] = None,
    ratios: Annotated[
        str, typer.Option("--ratios", metavar="T/V/T", help="Of train, validation and test.")
    ] = "6/1/3",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Another draw.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", show_default=False, help="The manifest to write."),
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option("--data-root", metavar="DIR", show_default=False, help="Where data lie."),
    ] = None,
) -> int:
    """Draw a stratified split of data that have none, and write it beside them."""
    from vipbench.cli.splitting import split_command

    return split_command(source, data_root, group, ratios, seed, out)
