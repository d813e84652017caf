"""The commands that hand results on, and their options; what they do is in modules of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Folders = Annotated[
    list[Path], typer.Argument(metavar="DIR...", show_default=False, help="Results folders.")
]
Folder = Annotated[
    Path, typer.Argument(metavar="DIR", show_default=False, help="A results folder.")
]
OutFolder = Annotated[
    Path,
    typer.Option("--out", "-o", metavar="DIR", show_default=False, help="The results folder."),
]
Tolerance = Annotated[
    float,
    typer.Option("--tolerance", metavar="SHARE", help="How far a score may be, of the largest."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(leaderboard)
    app.command()(export)
    app.command("import")(import_)
    app.command()(merge)
    app.command()(reproduce)
    app.command()(verify)
    app.command()(cite)


def leaderboard(
    folders: Folders,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="DIR", help="Where index.html is written."),
    ] = Path("site"),
    title: Annotated[
        str, typer.Option("--title", metavar="TEXT", help="The page's heading.")
    ] = "Leaderboard",
) -> int:
    """Write a leaderboard: one page that needs no network, for a browser."""
    from vipbench.cli.leaderboard import leaderboard_command

    return leaderboard_command(folders, out, title)


def export(
    folder: Folder,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", show_default=False, help="What to write.")
    ],
    format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="parquet|csv|jsonl", help="By default the file's ending says."
        ),
    ] = None,
    scores: Annotated[
        bool, typer.Option("--scores/--no-scores", help="Each test image's scores, or not.")
    ] = True,
    include_paths: Annotated[
        bool,
        typer.Option("--include-paths", help="Names of images, groups and files as they are."),
    ] = False,
    bundle: Annotated[
        bool,
        typer.Option(
            "--bundle",
            help="A zip with the last run's suite, splits, prompts, plugins' source and records.",
        ),
    ] = False,
    parameters: Annotated[
        bool, typer.Option("--parameters", help="Into a bundle: what was learned.")
    ] = False,
    patient_data: Annotated[
        bool,
        typer.Option(
            "--patient-data",
            help="Into a bundle: also learned parameters that hold single images' features.",
        ),
    ] = False,
) -> int:
    """Write a folder's records into one file, for others.

    Images and groups get pseudonyms, and no path, file name or error message leaves, unless
    --include-paths is given.
    """
    if bundle:
        from vipbench.cli.bundle import bundle_command

        return bundle_command(folder, out, include_paths, parameters, patient_data)
    if parameters or patient_data:
        from vipbench.errors import UsageError

        raise UsageError("--parameters and --patient-data go into a bundle: add --bundle")
    from vipbench.cli.exchange import export_command

    return export_command(folder, out, format, include_paths, scores)


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False, help="An export.")],
    out: OutFolder,
    submitter: Annotated[
        str,
        typer.Option("--submitter", metavar="NAME", show_default=False, help="Who handed them in."),
    ],
) -> int:
    """Add others' exported records to a folder.

    Each is checked: its schema, its hash, and that its metrics follow from its scores. Results that
    differ from those that are there stand beside them; see merge.
    """
    from vipbench.cli.exchange import import_command

    return import_command(file, out, submitter)


def merge(
    out: OutFolder,
    folders: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=]DIR...", show_default=False, help="Results folders, and whose they are."
        ),
    ] = None,
    prefer: Annotated[
        str | None,
        typer.Option(
            "--prefer",
            metavar="NAME[@DEVICE]",
            help="Whose results stand where several differ.",
        ),
    ] = None,
) -> int:
    """Put the records of several folders together.

    The same cell with other scores is kept once for each who handed it in. Their spread is shown,
    they are never averaged, and tables leave the cell open until --prefer chooses.
    """
    from vipbench.cli.exchange import merge_command

    return merge_command(folders or (), out, prefer)


def reproduce(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", show_default=False, help="What export made.")
    ],
    out: OutFolder,
    data_root: Annotated[
        Path | None,
        typer.Option(
            "--data-root", metavar="DIR", show_default=False, help="Where datasets are looked for."
        ),
    ] = None,
    datasets: Annotated[
        list[str] | None,
        typer.Option(
            "--dataset",
            metavar="NAME=SOURCE",
            show_default=False,
            help="Your copy of a dataset that came from a path; repeatable.",
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Run the bundle's plugins' code without asking.")
    ] = False,
    tolerance: Tolerance = 1e-3,
) -> int:
    """Make a bundle's run again and compare each cell.

    The bundle is unpacked into OUT/bundle, checked file by file. Exit status 1 where a cell is
    different or could not be made.
    """
    from vipbench.cli.bundle import reproduce_command

    return reproduce_command(bundle, out, data_root, datasets or (), yes, tolerance)


def verify(
    folder: Folder,
    again: Annotated[
        int, typer.Option("--rerun", metavar="N", help="Run N cells anew and compare.")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Which cells are drawn.")] = 0,
    tolerance: Tolerance = 1e-3,
    suite: Annotated[
        Path | None,
        typer.Option(
            "--suite",
            metavar="FILE",
            show_default=False,
            help="Where data and plugins are; by default the folder's own suite.yaml.",
        ),
    ] = None,
) -> int:
    """Check that a folder is whole and that its metrics follow from its scores.

    With --rerun a random sample of its cells is run anew, in a temporary folder: each is identical,
    within the tolerance, or different. Exit status 1 where anything is not as it should be.
    """
    from vipbench.cli.verify import verify_command
    from vipbench.spec import RunSpec

    spec = None if suite is None else RunSpec.from_yaml(suite)
    return verify_command(folder, again, seed, spec, tolerance)


def cite(folder: Folder) -> int:
    """Print BibTeX and licences of the methods, backbones and datasets of a folder."""
    from vipbench.cli.cite import cite_command

    return cite_command(folder)
