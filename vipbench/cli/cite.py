"""The commands that hand results on, and their options; what they do is in modules of their own."""

from __future__ import annotations

from vipbench.cli.options import Folder


def cite(folder: Folder) -> int:
    """Print BibTeX and licences of the methods, backbones and datasets of a folder."""
    from vipbench.cli.commands.cite import cite_command

    return cite_command(folder)
