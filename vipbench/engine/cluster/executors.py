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
from vipbench import trust
from vipbench.engine.cluster.folder import EncodePart, Parts, encode_name
from vipbench.engine.cluster.queue import Executor, Job
from vipbench.engine.cluster.slurm import Slurm
from vipbench.errors import UsageError
from vipbench.files import open_own
from vipbench.runspec.executor import ExecutorSpec

# Set for a process that ends when its standard input does, that is, with who started it.
LIFELINE_VARIABLE = "VIPBENCH_LIFELINE"


def work(out: str, number: int, *after: Any) -> int:
    """Do part `number` of the run that was cut in `out`; returns the exit status of
    `vipbench work`. after: what a scheduler was to wait for."""
    return _work(out, "--part", number, Parts(Path(out)).file(number, ".log"))


def encode(out: str, number: int) -> int:
    """Encode the images of pair `number`; returns the exit status of `vipbench work`."""
    return _work(out, "--encode", number, Parts(Path(out)).file(encode_name(number), ".log"))


def _work(out: str, kind: str, number: int, log: Path) -> int:
    root = str(Path(vipbench.__file__).parents[1])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    with os.fdopen(open_own(log, os.O_APPEND), "ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "vipbench", "work", out, kind, str(number)],
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
    """Parts in an executor of the standard library's kind. encode: begins an encode part, and gives
    what a part that needs it takes as a further argument; None where a part cannot wait for
    another. Then the first part that misses features encodes them, and others wait for these."""

    resubmits = False

    def __init__(
        self,
        parts: Parts,
        submit: Callable[..., Future[int]],
        close: Callable[[], Any],
        encode: Callable[[str, int], Any] | None = None,
    ):
        self._parts, self._submit, self._close, self._encode = parts, submit, close, encode
        self._futures: dict[int, Future[int]] = {}

    def submit(
        self, numbers: Sequence[int], memory: int = 1, encodes: Sequence[EncodePart] = ()
    ) -> str:
        """See Executor."""
        out, begun = str(self._parts.out), {}
        if self._encode is not None:
            begun = {one.number: self._encode(out, one.number) for one in encodes}
        for number in numbers:
            after = [begun[one.number] for one in encodes if begun and number in one.parts]
            self._futures[number] = self._submit(work, out, number, *after)
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
        raise UsageError(
            f"--executor {spec.name} cannot be imported: {error}; the folder of {module}.py must "
            "be in PYTHONPATH"
        ) from None
    if not isinstance(made, FuturesExecutor) and not hasattr(made, "submit"):
        raise UsageError(
            f"--executor {spec.name} returned a {type(made).__name__}; expected a "
            "concurrent.futures.Executor"
        )
    return Futures(parts, made.submit, lambda: _shut_down(made))


def _shut_down(made: Any) -> None:
    """Without waiting for parts that have not begun."""
    try:
        made.shutdown(wait=False, cancel_futures=True)
    except TypeError:  # Dask's takes `wait` alone, and cancels
        made.shutdown(wait=False)


def _ray(parts: Parts, spec: ExecutorSpec) -> Executor:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UsageError("--executor ray needs Ray: pip install 'vipbench[ray]'") from None
    names = ("VIPBENCH_", "HF_", "OMP_", "PYTHONPATH")
    environment = {k: v for k, v in os.environ.items() if k.startswith(names)}
    # Ray's processes may have another one, and would refuse the run.
    environment[trust.FOLDER_VARIABLE] = str(trust.trust_file().parent.absolute())
    try:
        ray.init(
            address=os.environ.get("RAY_ADDRESS"),
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": environment},
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(f"Ray cannot be reached: {error}") from None
    made = ray.remote(num_cpus=spec.cpus or 1, num_gpus=spec.gpus or 0, max_retries=-1)
    task, ahead = made(work), made(encode)
    return Futures(
        parts,
        lambda _, *given: task.remote(*given).future(),
        lambda: ray.shutdown(),
        lambda out, number: ahead.remote(out, number),
    )
