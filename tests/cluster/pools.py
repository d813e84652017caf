"""An executor for `--executor`, found by its name."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor


def two_threads() -> ThreadPoolExecutor:
    """Two parts at once, on this machine."""
    return ThreadPoolExecutor(2)
