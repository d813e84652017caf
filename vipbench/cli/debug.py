"""`vipbench debug`: the options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from vipbench.cli.options import AllowCode, with_flags_of


def make_debug(run: Callable[..., int], own: tuple[str, ...]) -> Callable[..., int]:
    """`vipbench debug`."""

    def debug(context: typer.Context, **values: Any) -> int:
        """Run one cell alone in this process, where print and pdb work, and keep nothing.

        The cell is the first that can be run of those that the flags choose.
        """
        from vipbench.cli.commands.debug import debug_command
        from vipbench.cli.commands.suites import spec_of_flags

        post_mortem, _ = values.pop("pdb"), values.pop("allow_code")
        return debug_command(spec_of_flags(context, values), post_mortem)

    pdb = typer.Option("--pdb", help="Where it fails, stay there in the debugger.")
    return with_flags_of(
        debug, run, own, pdb=(False, Annotated[bool, pdb]), allow_code=(False, AllowCode)
    )
