"""The workers of one run: they take groups of cells from one queue, whoever is free the next.

One loop in the driver's process watches them all. A worker that ends, hangs or takes too much
memory costs the cells that it was at and is replaced; the others go on. No torch here.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vipbench.engine.workers.process import BEAT, Stopped, Worker, WorkerDiedError
from vipbench.errors import UsageError
from vipbench.runspec.run import RunSpec
from vipbench.trust import UntrustedCodeError

MEMORY_VARIABLE = "VIPBENCH_WORKER_GB"


# The share of the machine's memory that all workers together may take.
MEMORY_SHARE = 0.9


@dataclass
class Group:
    """Cells that run as one. pair: backbone and dataset, whose images and texts they share. alone:
    whether they are tried one by one, since they ended a worker together."""

    keys: list[str]
    pair: tuple[str, str]
    alone: bool = False
    deaths: int = 0
    # Turns that ended their worker before it had told what a record says of the cells.
    unbegun: int = 0
    # What their records say in any case, told by the worker before it begins.
    bases: dict[str, Mapping[str, Any]] = field(default_factory=dict)


class Desk(Protocol):
    """Where the crew hands in what it has."""

    def take(self, event: Mapping[str, Any]) -> None:
        """A finished cell, or a note."""

    def write_off(self, base: Mapping[str, Any], kind: str, message: str) -> None:
        """A cell that will have no result, of which `base` is known."""

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Those that have no record of this run."""

    def progress(self, key: str, share: float) -> None:
        """How far the group of this cell is."""


@dataclass
class Post:
    """A place for one worker, and what that is at. number: decides the device. spare: started
    while the worker is about to run into the limit, so that the next cell need not wait."""

    number: int
    worker: Worker | None = None
    spare: Worker | None = None
    group: Group | None = None
    keys: list[str] = field(default_factory=list)
    pair: tuple[str, str] | None = None
    spoilt: bool = False

    def drop(self) -> None:
        """End the worker; the spare takes its place."""
        if self.worker is not None:
            self.worker.close()
        self.worker, self.spare = self.spare, None


def too_much(used: list[tuple[int, Post]]) -> list[tuple[int, Post]]:
    """Of workers and the bytes that each takes: who is to be ended, before the system ends a
    process of its own choice, which might be the driver.

    Who takes more than `VIPBENCH_WORKER_GB`; without that, the largest where all together take
    more than a share of the machine's memory.
    """
    own = os.environ.get(MEMORY_VARIABLE)
    if own:
        return [found for found in used if found[0] > float(own) * 1e9]
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if used and sum(taken for taken, _ in used) > MEMORY_SHARE * machine:
        return [max(used, key=lambda found: found[0])]
    return []


DIED, TIMEOUT, NOT_TRIED, SILENT = "WorkerDied", "Timeout", "NotTried", "NoResult"


# After so many of a group's cells ended a worker each, the rest are written off untried.
MOST_DEATHS = 2


# After so many workers in a row that ended before they knew the run's cells, the run ends.
MOST_STARTS = 3


class Crew:
    """stop: asked several times a second; True raises Stopped."""

    def __init__(self, spec: RunSpec, desk: Desk, stop: Callable[[], bool]) -> None:
        self._suite = spec.to_yaml()
        self._limit = spec.cell_timeout
        self._desk = desk
        self._stop = stop
        self._posts = [Post(0)]
        self._queue: list[Group] = []
        self._known: set[str] = set()
        self._starts = 0
        self._looked = 0.0

    def plan(self) -> dict[str, Any]:
        """The first worker's plan, and that worker ready to run it. Raises UsageError, Stopped."""
        [post] = self._posts
        while True:
            post.worker = Worker()
            try:
                plan = post.worker.ask("plan", self._stop, suite=self._suite, number=0)
            except WorkerDiedError as error:
                post.drop()
                self._false_start(error)
                continue
            post.worker.planned = True
            self._starts = 0
            self._known = {cell["key"] for cell in plan["cells"]}
            return plan

    def work(self, groups: Sequence[Group], workers: int) -> None:
        """Run all groups, at most `workers` at a time. Raises UsageError, Stopped."""
        self._queue = list(groups)
        self._posts += [Post(number) for number in range(1, min(workers, len(groups)))]
        while self._queue or any(post.group for post in self._posts):
            for post in self._posts:
                if self._queue and post.group is None:
                    self._assign(post)
            self._watch()

    def rescue(self) -> None:
        """Hand in the finished cells that have arrived and that nobody has taken."""
        until = time.monotonic() + 2
        for post in self._posts:
            if post.worker is None or post.group is None:
                continue
            try:
                while time.monotonic() < until and (events := post.worker.receive()):
                    for event in events:
                        if event["event"] == "done":
                            self._desk.take(event)
            except WorkerDiedError:
                continue

    def close(self) -> None:
        """End every worker."""
        for post in self._posts:
            for worker in (post.worker, post.spare):
                if worker is not None:
                    worker.close()
            post.worker = post.spare = None

    # Work and workers.

    def _assign(self, post: Post) -> None:
        if post.worker is None:
            post.worker = self._started(post)
        if post.worker is None or not (post.worker.planned and post.worker.ready):
            return
        group = self._queue.pop(self._choice(post))
        keys = self._desk.missing(group.keys)
        post.group, post.pair, post.spoilt = group, group.pair, False
        post.keys = keys[:1] if group.alone else keys
        try:
            post.worker.send("run", keys=post.keys)
        except WorkerDiedError as error:
            self._died(post, post.worker, error)

    def _choice(self, post: Post) -> int:
        """Which group of the queue: one whose images and texts this worker has in memory; else
        one of which no other worker is just making the features; else any."""
        others = {other.pair for other in self._posts if other is not post and other.group}

        def rank(place: int) -> tuple[bool, bool]:
            pair = self._queue[place].pair
            return pair != post.pair, pair in others

        return min(range(len(self._queue)), key=rank)

    def _started(self, post: Post) -> Worker | None:
        worker = Worker()
        try:
            worker.send("plan", suite=self._suite, number=post.number)
        except WorkerDiedError as error:
            worker.close()
            self._false_start(error)
            return None
        return worker

    def _false_start(self, error: WorkerDiedError) -> None:
        self._starts += 1
        if self._starts == MOST_STARTS:
            raise UsageError(f"planning failed: {error}") from error

    def _watch(self) -> None:
        """Wait a moment for events, and deal with them and with workers that gave none."""
        owners = {w: p for p in self._posts for w in (p.worker, p.spare) if w is not None}
        readable = select.select(list(owners), [], [], BEAT)[0]
        if self._stop():
            raise Stopped
        # Before the events: while they are dealt with, no worker's time is counted.
        for post in self._posts:
            if post.group is not None and post.worker not in readable:
                self._look_at_time(post)
        self._look_at_memory()
        for worker in readable:
            post = owners[worker]
            if worker not in (post.worker, post.spare):
                continue  # ended above
            try:
                events = worker.receive()
            except WorkerDiedError as error:
                self._died(post, worker, error)
                continue
            for event in events:
                self._heard(post, worker, event)
            if worker is post.worker and worker.ready and post.group is not None:
                self._turn_ended(post)

    def _heard(self, post: Post, worker: Worker, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "usage_error":
            raise UsageError(event["message"])
        if kind == "untrusted" and worker.planned:
            # Code that is imported within a cell; what this run's plan needs was allowed.
            raise UntrustedCodeError(**event["code"])
        if kind == "plan" or kind == "untrusted":
            worker.planned = True
            self._starts = 0
            if kind == "untrusted" or not self._known <= {cell["key"] for cell in event["cells"]}:
                raise UsageError(
                    "a plugin or data file was changed while the run went on; what is finished is "
                    "kept, and the same command goes on with the files as they are now"
                )
        elif worker is not post.worker or post.group is None:
            return
        elif kind == "begun":
            post.group.bases.update((record["key"], record) for record in event["records"])
        elif kind == "tick":
            left = len(self._desk.missing(post.group.keys)) if post.group.alone else 1
            self._desk.progress(post.keys[0], event["share"] / max(left, 1))
        elif kind == "group_done":
            post.spoilt = event["spoilt"]
        else:
            self._desk.take(event)

    # Ends.

    def _turn_ended(self, post: Post) -> None:
        group, post.group = post.group, None
        assert group is not None
        if post.spoilt:
            # A method changed what the worker's later cells would use.
            post.drop()
        self._write_off(group, post.keys, SILENT, "its worker told nothing of it")
        if self._desk.missing(group.keys):
            self._queue.insert(0, group)

    def _died(self, post: Post, worker: Worker, error: WorkerDiedError) -> None:
        if worker is post.spare:
            post.spare = None
            worker.close()
            self._false_start(error)
            return
        post.drop()
        if post.group is None:
            self._false_start(error)
        else:
            self._fell(post, DIED, str(error))

    def _fell(self, post: Post, kind: str, message: str) -> None:
        """A worker ended within a turn: what becomes of the turn's cells, and of the group."""
        group, post.group = post.group, None
        assert group is not None
        missing = self._desk.missing(post.keys)
        if missing and missing[0] not in group.bases:
            # Nothing of the cells was run yet.
            group.unbegun += 1
            if group.unbegun == MOST_STARTS:
                raise UsageError(f"workers end before they begin: {message}")
        elif kind == TIMEOUT and not group.alone:
            self._write_off(group, missing, kind, message)
        elif len(post.keys) > 1:
            # One cell may have ended the worker; the others must not suffer for it.
            group.alone = True
        else:
            group.deaths += 1
            self._write_off(group, missing, kind, message)
            if group.deaths == MOST_DEATHS:
                told = f"not tried, since {group.deaths} cells of its group failed so: {message}"
                self._write_off(group, group.keys, NOT_TRIED, told)
        if self._desk.missing(group.keys):
            self._queue.insert(0, group)

    def _write_off(self, group: Group, keys: Sequence[str], kind: str, message: str) -> None:
        for key in self._desk.missing(keys):
            self._desk.write_off(group.bases[key], kind, message)

    # Limits.

    def _look_at_time(self, post: Post) -> None:
        assert post.worker is not None
        idle = time.monotonic() - post.worker.last
        # A spare takes some ten seconds to be ready.
        if idle > max(self._limit / 4, self._limit - 30) and post.spare is None:
            post.spare = self._started(post)
        if idle > self._limit:
            post.drop()
            self._fell(post, TIMEOUT, f"no progress in {self._limit:g} s")

    def _look_at_memory(self) -> None:
        if time.monotonic() - self._looked < BEAT:
            return
        self._looked = time.monotonic()
        used: list[tuple[int, Post]] = []
        for post in self._posts:
            for worker in (post.worker, post.spare):
                if worker is not None:
                    worker.bound_log()
            if post.worker is not None:
                used.append((post.worker.memory(), post))
        for taken, post in too_much(used):
            worker = post.worker
            assert worker is not None
            said = f"the worker process took {taken / 1e9:.1f} GB of memory and was ended; "
            said += f"{MEMORY_VARIABLE} sets how much one may take"
            self._died(post, worker, WorkerDiedError(said))
