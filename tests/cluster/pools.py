"""An executor for `--executor`, found by its name."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor


class Two(ThreadPoolExecutor):
    """Two parts at once, on this machine; it is shut down as Dask's is."""

    def __init__(self) -> None:
        super().__init__(2)

    def shutdown(self, wait: bool = True) -> None:
        super().shutdown(wait, cancel_futures=not wait)


def two_threads() -> ThreadPoolExecutor:
    return Two()
