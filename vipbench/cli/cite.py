"""`vipbench cite`: the options."""

from __future__ import annotations

from vipbench.cli.options import DEFAULT_FOLDER, DefaultFolder


def cite(folder: DefaultFolder = DEFAULT_FOLDER) -> int:
    """Print BibTeX and licences of a folder's methods, backbones and datasets."""
    from vipbench.cli.commands.cite import cite_command

    return cite_command(folder)
