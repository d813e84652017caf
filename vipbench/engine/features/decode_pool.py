"""Processes that decode images beside a worker, whose threads would wait for Python's lock.

Each decoder is a `multiprocessing` process ("spawn": CUDA survives no fork) at the other end of a
pipe of its own, and a thread here talks to it, one image at a time. The libraries' pools were left:
`concurrent.futures` and `DataLoader` bring all results through one queue, and a process that is
killed while it writes there leaves half a message, whose rest is awaited without end.
A pipe with one writer ends with it. Pixels come as bytes, which need no room in /dev/shm, scarce in
containers; and by its pipe's end a decoder knows that its worker is gone, whatever ended that.

Whatever a decoder cannot do (an image that is damaged, memory that is short, its own death) the
thread does instead: the numbers are the same, and so is the message of an error. What a decoder
gives first is held against what its thread gives, in every bit, before it is trusted.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import get_context, resource_tracker
from multiprocessing.context import SpawnProcess
from typing import Self

import torch
from torch import Tensor

from vipbench.api import ImageBackbone
from vipbench.engine.features.decode_process import Job, bytes_of, serve
from vipbench.errors import UsageError

VARIABLE = "VIPBENCH_DECODERS"
# The most decoders of one worker.
MOST = 64
# A decoder imports for seconds before its first image: so many views must wait.
WORTH = 64
# Bytes of a pickled transform above which it is taken to hold weights; a pipe holds as many before
# anyone reads.
LARGEST = 1 << 16
# Seconds in which a decoder must be ready, or that it has to end.
PATIENCE, GRACE = 120.0, 5.0


class NotPortableError(ValueError):
    """A backbone's preprocessing cannot be sent to another process; the message says why."""


def asked() -> int:
    """How many decoders `VIPBENCH_DECODERS` asks for, 0 without it. Raises UsageError."""
    given = os.environ.get(VARIABLE, "").strip() or "0"
    if not (given.isascii() and given.isdigit() and int(given) <= MOST):
        raise UsageError(
            f"{VARIABLE} is '{given}'; expected a number of decoding processes from 0 (threads "
            f"decode instead) to {MOST}"
        )
    return int(given)


def wanted(waiting: int) -> int:
    """How many decoders to start where `waiting` views are to be encoded. Raises UsageError."""
    return asked() if waiting >= WORTH else 0


def portable(backbone: ImageBackbone) -> bytes:
    """The backbone's preprocessing, pickled without weights. Raises NotPortableError."""
    own = [
        next((c for c in type(backbone).__mro__ if name in vars(c)), None)
        for name in ("preprocess", "preprocess_alone")
    ]
    # Who overrides one of the two alone has changed what the other one says.
    if own[0] is not own[1] or {"preprocess", "preprocess_alone"} & vars(backbone).keys():
        raise NotPortableError("its `preprocess` has no `preprocess_alone` beside it")
    try:
        transform = backbone.preprocess_alone()
        if transform is None:
            raise NotPortableError("its `preprocess_alone` returns None")
        sent = pickle.dumps(transform)
    except NotPortableError:
        raise
    except Exception as error:
        raise NotPortableError(f"{type(error).__name__}: {error}") from error
    if len(sent) > LARGEST:
        raise NotPortableError(
            f"its preprocessing takes {len(sent):,} bytes, as it contains weights"
        )
    return sent


class Decoders:
    """So many decoders; to be used in a `with` block, at whose end they end.

    transform: as `portable` gives it. threads: where `run` is to be called. refused: why decoders
    are of no use to this backbone, empty where they are. problems: what else went wrong, for the
    user, once the block has ended.
    """

    def __init__(self, transform: bytes, count: int) -> None:
        self.problems: list[str] = []
        self.refused = ""
        self.threads = ThreadPoolExecutor(
            count, "decoders", initializer=torch.set_num_threads, initargs=(1,)
        )
        self._transform, self._count = transform, count
        self._free: queue.SimpleQueue[_Decoder] = queue.SimpleQueue()
        self._all: list[_Decoder] = []
        # Why each decoder that is no more was lost; threads append to it.
        self._lost: list[str] = []
        self._closing = False

    def __enter__(self) -> Self:
        try:
            # It would let Ctrl-C through again in the midst of the first start.
            resource_tracker.ensure_running()
            for _ in range(self._count):
                decoder = _Decoder(self._transform)
                self._all.append(decoder)
                self._free.put(decoder)
        except Exception as error:
            self._lost += [f"could not be started ({error})"] * (self._count - len(self._all))
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self.threads.shutdown(wait=False, cancel_futures=True)
        for decoder in self._all:
            decoder.process.kill()
        # None of them may be talking when the pipes are closed.
        self.threads.shutdown(wait=True)
        for decoder in self._all:
            decoder.close()
        if len(self._lost) == self._count:
            self.refused = "all that were started are lost"
        for why, count in Counter(self._lost).items():
            self.problems.append(
                f"{count} of {self._count} processes that decode images {why}; threads of the "
                f"worker decoded in their place ({VARIABLE}=0 starts none)"
            )

    def run(self, job: Job, alone: Callable[[], list[Tensor]]) -> list[Tensor]:
        """The result of a decoder for `job`; if no decoder can do it, that of `alone` in this
        process."""
        try:
            decoder = self._free.get_nowait()
        except queue.Empty:
            return alone()
        try:
            found = decoder.ask(job)
        except (EOFError, OSError):
            if self._closing:
                raise
            self._lost.append(f"ended early ({decoder.end()})")
            return alone()
        except NotPortableError as error:
            self.refused = f"another process cannot read its preprocessing ({error})"
            return alone()
        if found is None:
            self._free.put(decoder)
            return alone()
        if not decoder.trusted:
            mine = alone()
            if not _same(mine, found):
                self.refused = "another process makes other pixels of its images"
                return mine
            decoder.trusted = True
        self._free.put(decoder)
        return found


class _Decoder:
    """One decoder as its worker sees it. trusted: whether its pixels were found to be right."""

    def __init__(self, transform: bytes) -> None:
        self.trusted = False
        self._ready, self._waited = False, False
        context = get_context("spawn")
        self._link, there = context.Pipe()
        self.process: SpawnProcess = context.Process(target=serve, args=(there,), daemon=True)
        # A decoder inherits what is blocked, and so prints nothing on Ctrl-C while it imports.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            # Its end must be the only one, or the pipe would not end with it.
            there.close()
        with suppress(OSError):  # it has ended already, as `ask` will find
            self._link.send_bytes(transform)

    def ask(self, job: Job) -> list[Tensor] | None:
        """What it makes of `job`; None where it is not ready yet, or could not do it. Raises
        EOFError or OSError where it has ended, NotPortableError where it can do nothing."""
        if not self._ready:
            # Once in vain is enough: a thread decodes until it is ready.
            patience, self._waited = 0 if self._waited else PATIENCE, True
            if not self._link.poll(patience):
                return None
            if reason := self._link.recv():
                raise NotPortableError(reason)
            self._ready = True
        try:
            self._link.send(job)
        except OSError:
            raise
        except Exception:  # a plugin's kind of view that cannot be pickled, say
            return None
        heads = self._link.recv()
        if heads is None:
            return None
        found = [torch.empty(shape, dtype=dtype) for dtype, shape in heads]
        for tensor in found:
            self._link.recv_bytes_into(bytes_of(tensor))
        return found

    def end(self) -> str:
        """How it ended."""
        self.process.join(GRACE)
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"exit status {code}"
        if code == -signal.SIGKILL:
            return "SIGKILL; perhaps out of memory"
        return {s.value: s.name for s in signal.Signals}.get(-code, f"signal {-code}")

    def close(self) -> None:
        """Free what a decoder held that was killed."""
        self._link.close()
        self.process.join(GRACE)
        with suppress(ValueError):  # it hangs in the kernel
            self.process.close()


def _same(some: list[Tensor], others: list[Tensor]) -> bool:
    """Whether both are equal in every bit."""
    return all(
        a.shape == b.shape and a.dtype == b.dtype and bytes_of(a.contiguous()) == bytes_of(b)
        for a, b in zip(some, others, strict=True)
    )
