"""`vipbench cancel`: the options."""

from __future__ import annotations

from vipbench.cli.options import Run


def cancel(folder: Run) -> int:
    """Cancel all jobs of a run on a cluster. The same `vipbench run` resumes it."""
    from vipbench.cli.commands.parts import cancel_command

    return cancel_command(folder)
