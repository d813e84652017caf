"""`python -m vipbench`: the command line."""

from __future__ import annotations

import contextlib
import os
import sys

if __name__ == "__main__":
    # Python puts the working directory first, where a stranger's file may have a module's name.
    with contextlib.suppress(OSError):
        if not sys.flags.safe_path and sys.path[0] in ("", os.getcwd()):  # noqa: PTH109
            del sys.path[0]
    from vipbench.cli import main

    main()
