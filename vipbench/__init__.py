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

from typing import TYPE_CHECKING, Any

from vipbench.errors import UsageError
from vipbench.hookspecs import hookimpl

if TYPE_CHECKING:
    from os import PathLike

    from pandas import DataFrame

    from vipbench.engine.explain.model import Model, load_model
    from vipbench.engine.given.data import data
    from vipbench.engine.run import plan, run
    from vipbench.results.results import Results

__version__ = "0.1.0"
# Imported at their first use: they need pandas, and models torch.
_LATER = {
    "Model": "vipbench.engine.explain.model",
    "Results": "vipbench.results.results",
    "data": "vipbench.engine.given.data",
    "load_model": "vipbench.engine.explain.model",
    "plan": "vipbench.engine.run",
    "run": "vipbench.engine.run",
}
__all__ = [
    "Model",
    "Results",
    "UsageError",
    "__version__",
    "data",
    "hookimpl",
    "load_model",
    "load_results",
    "plan",
    "run",
]


def load_results(
    folder: str | PathLike[str], superseded: bool = False, folds: bool = False
) -> DataFrame:
    """The records of a results folder as a pandas DataFrame, one row each; docs/results.md names
    the columns. superseded: also superseded records, marked by a boolean column of that
    name. folds: one row per fold of a dataset, not one for all. Metrics are fractions. Imports no
    torch. Raises StoreError."""
    from vipbench.results.sharing.frame import load_results as load

    return load(folder, superseded, folds)


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'vipbench' has no attribute '{name}'")
    from importlib import import_module

    value = getattr(import_module(_LATER[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
