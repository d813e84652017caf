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
    debug = _with_flags_of(run, not_of_the_suite)
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


def _with_flags_of(run: Callable[..., int], own: tuple[str, ...]) -> Callable[..., int]:
    """`vipbench debug`, with the flags of `run` that choose cells, and `--pdb`."""
    hints = get_type_hints(run, include_extras=True)
    kept = [
        p.replace(annotation=hints[name])
        for name, p in inspect.signature(run).parameters.items()
        if name in ("context", "file", "suite", "settings") or name not in own
    ]
    pdb: Any = Annotated[
        bool, typer.Option("--pdb", help="Where it fails, stay there in the debugger.")
    ]
    kept.append(
        inspect.Parameter("pdb", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=pdb)
    )

    def debug(context: typer.Context, **values: Any) -> int:
        """Run one cell alone in this process, where print and pdb work, and keep nothing.

        The cell is the first that can be run of those that the flags choose.
        """
        from vipbench.cli.debug import debug_command
        from vipbench.cli.suites import spec_of_flags

        post_mortem = values.pop("pdb")
        return debug_command(spec_of_flags(context, values), post_mortem)

    vars(debug)["__signature__"] = inspect.Signature(kept, return_annotation=int)
    debug.__annotations__ = {p.name: p.annotation for p in kept}
    return debug


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
