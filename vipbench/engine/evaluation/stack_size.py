"""How many cells are trained together at most."""

from __future__ import annotations

import os

# More gain little, and cost memory.
MOST_STACKED = 64
# A smaller number, for jobs whose time ends before so many cells do. Numbers stay the same.
VARIABLE = "VIPBENCH_MOST_STACKED"


def most_stacked() -> int:
    """The number in force."""
    given = os.environ.get(VARIABLE, "")
    return min(MOST_STACKED, int(given)) if given.isdigit() and int(given) else MOST_STACKED
