"""`vipbench trust`: the options, and what is done with the list of trusted code."""

from __future__ import annotations

from typing import Annotated

import typer

from vipbench.cli.exit_codes import OK


def trust(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DIGEST|FILE",
            show_default=False,
            help="With --forget: digests (or their beginning) or paths; default all.",
        ),
    ] = None,
    listed: Annotated[
        bool, typer.Option("--list", help="List trusted files (default).", show_default=False)
    ] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Revoke trust.", show_default=False)
    ] = False,
) -> int:
    """List or revoke trusted code files, each by its SHA-256.

    Code becomes trusted when you name it (--plugins-dir, check FILE, a backbone with +remote-code)
    or confirm the question. A changed file needs a new confirmation.
    """
    from vipbench import trust as trusting
    from vipbench.errors import UsageError
    from vipbench.text import clean, columns, plural

    if what and not forget:
        raise UsageError(f"{what[0]}: a digest or file requires --forget")
    if forget and listed:
        raise UsageError("give --list or --forget, not both")
    if forget:
        gone = trusting.forget(what or ())
        print(f"{plural(len(gone), 'file')} forgotten")
        return OK
    found = trusting.trusted()
    rows = [(digest, entry["since"], entry["file"]) for digest, entry in found.items()]
    for line in columns([("SHA-256", "since", "file"), *sorted(rows, key=lambda row: row[1:])]):
        print(line)
    print(f"{plural(len(found), 'file')}, kept in {clean(str(trusting.trust_file()))}")
    return OK
