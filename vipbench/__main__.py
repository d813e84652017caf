"""`python -m vipbench`: the command line."""

from __future__ import annotations

from vipbench.cli import main

if __name__ == "__main__":
    main()
