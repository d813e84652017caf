"""Executors that live in this process: any `concurrent.futures.Executor`, and Ray.

They are given `work(out, number)`, an importable function of a path and an integer, so that nothing
of ours is pickled. It runs the part in a process of its own, whose output is the part's log.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Executor as FuturesExecutor
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import vipbench
from vipbench.engine.cluster.folder import Parts
from vipbench.engine.cluster.queue import Executor, Job
from vipbench.engine.cluster.slurm import Slurm
from vipbench.errors import UsageError
from vipbench.files import open_own
from vipbench.runspec.executor import ExecutorSpec

# Set for a process that ends when its standard input does, that is, with who started it.
LIFELINE_VARIABLE = "VIPBENCH_LIFELINE"


def work(out: str, number: int) -> int:
    """Do part `number` of the run that was cut in `out`; returns the exit status of
    `vipbench work`."""
    log = Parts(Path(out)).file(number, ".log")
    root = str(Path(vipbench.__file__).parents[1])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    with os.fdopen(open_own(log, os.O_APPEND), "ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "vipbench", "work", out, "--part", str(number)],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            env={**os.environ, "PYTHONPATH": path, LIFELINE_VARIABLE: "1"},
            start_new_session=True,  # Ctrl-C is for who submitted
        )
        assert process.stdin is not None
        try:
            return process.wait()
        finally:
            process.stdin.close()


class Futures:
    """Parts in an executor of the standard library's kind."""

    resubmits = False

    def __init__(self, parts: Parts, submit: Callable[..., Future[int]], close: Callable[[], Any]):
        self._parts, self._submit, self._close = parts, submit, close
        self._futures: dict[int, Future[int]] = {}

    def submit(self, numbers: Sequence[int], memory: int = 1) -> str:
        """See Executor."""
        for number in numbers:
            self._futures[number] = self._submit(work, str(self._parts.out), number)
        return ""

    def jobs(self) -> dict[int, Job]:
        """See Executor."""
        return {number: _job(future) for number, future in self._futures.items()}

    def cancel(self) -> None:
        """Parts at work look for the file `cancelled` themselves."""
        for future in self._futures.values():
            future.cancel()

    def close(self) -> None:
        """See Executor. Parts that have all their results are just about to end."""
        wait(self._futures.values(), timeout=5)
        self._close()


def _job(future: Future[int]) -> Job:
    if not future.done():
        return Job("RUNNING" if future.running() else "PENDING", True)
    if future.cancelled():
        return Job("CANCELLED", False)
    if future.exception() is not None:
        return Job(f"FAILED ({type(future.exception()).__name__})", False)
    return Job("COMPLETED" if future.result() == 0 else "FAILED", False)


def make(parts: Parts, spec: ExecutorSpec, run_id: str) -> Executor:
    """The executor that a run names. Raises UsageError."""
    if spec.name == "slurm":
        return Slurm(parts, spec, f"vipbench-{run_id}")
    if spec.name == "ray":
        return _ray(parts, spec)
    module, _, function = spec.name.partition(":")
    try:
        made = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise UsageError(f"--executor {spec.name} cannot be imported: {error}") from None
    if not isinstance(made, FuturesExecutor) and not hasattr(made, "submit"):
        raise UsageError(
            f"--executor {spec.name} returned a {type(made).__name__}; expected a "
            "concurrent.futures.Executor"
        )
    return Futures(parts, made.submit, lambda: made.shutdown(wait=False, cancel_futures=True))


def _ray(parts: Parts, spec: ExecutorSpec) -> Executor:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UsageError("--executor ray needs Ray: pip install 'vipbench[ray]'") from None
    names = ("VIPBENCH_", "HF_", "OMP_", "PYTHONPATH")
    environment = {k: v for k, v in os.environ.items() if k.startswith(names)}
    try:
        ray.init(
            address=os.environ.get("RAY_ADDRESS"),
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": environment},
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(f"Ray cannot be reached: {error}") from None
    task = ray.remote(num_cpus=spec.cpus or 1, num_gpus=spec.gpus or 0, max_retries=-1)(work)
    return Futures(
        parts, lambda _, out, number: task.remote(out, number).future(), lambda: ray.shutdown()
    )
