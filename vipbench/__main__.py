"""`python -m vipbench`: the command line."""

from __future__ import annotations

if __name__ == "__main__":
    from vipbench.cli import main

    main()
