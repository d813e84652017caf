"""vipbench: few-shot adaptation of CLIP-like models in medical imaging, compared honestly.

Importing this package does not import torch; `vipbench.api` does.
"""

from __future__ import annotations

import os
import sys

# `python -m vipbench` puts the working directory first, where a stranger's file may have a module's
# name. What is imported above belongs to the interpreter itself.
if sys.argv[:1] == ["-m"] and "vipbench" in sys.orig_argv and not sys.flags.safe_path:
    try:
        if sys.path[0] in ("", os.getcwd()):  # noqa: PTH109 - pathlib would come from there
            del sys.path[0]
    except OSError:
        pass

from os import PathLike
from typing import TYPE_CHECKING

from vipbench.hookspecs import hookimpl

if TYPE_CHECKING:
    from pandas import DataFrame

__version__ = "0.1.0"
__all__ = ["__version__", "hookimpl", "load_results"]


def load_results(folder: str | PathLike[str], superseded: bool = False) -> DataFrame:
    """The records of a results folder as a pandas DataFrame, one row each; docs/results.md names
    the columns. superseded: also superseded records, marked by a boolean column of that
    name. Metrics are fractions. Imports no torch. Raises StoreError."""
    from vipbench.results.sharing.frame import load_results as load

    return load(folder, superseded)
