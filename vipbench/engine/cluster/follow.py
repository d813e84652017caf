"""The parts of a run on an executor, followed until all are done.

The executor tells which jobs are alive, and the results that have arrived tell what is done. A
failed or slow answer never counts as an end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

from vipbench.engine.cluster.collect import Collector
from vipbench.engine.cluster.folder import Parts, paced
from vipbench.engine.cluster.queue import Executor, Job
from vipbench.errors import UsageError
from vipbench.text import listed, plural

# Folders are looked at, and the queue is believed to be silent, at most so often, in seconds.
SCAN_EVERY, SILENT = 10.0, 60.0
# A file of a job that was killed may be seen so many seconds late.
LATE = 120.0
# A part that left the queue so often in a row without having begun is given up.
MOST_STARTS = 3
# A job that ended so had done nothing wrong.
OUT_OF_MEMORY = "OUT_OF_MEMORY"
CANCELLED = "CANCELLED"

State = Literal["waiting", "running", "left", "done", "given up", "refused", "cancelled"]
OVER: tuple[State, ...] = ("done", "given up", "refused", "cancelled")


@dataclass
class Watched:
    """A part as its follower sees it. job: its last one, as far as is known. seen: when it was last
    known to be alive. left: when it was first known not to be. starts: submissions since its last
    leg began. refusals: how often it could not be submitted again since it was last. again: when
    that is tried next. why: a sentence on its end."""

    number: int
    state: State = "left"
    job: Job | None = None
    seen: float = 0.0
    left: float | None = None
    starts: int = 0
    legs: int = 0
    doubled: bool = False
    refusals: int = 0
    again: float = 0.0
    why: str = ""

    @property
    def over(self) -> bool:
        """Whether nothing more is to come of it."""
        return self.state in OVER


class Follower:
    """Follows the parts of a run. say: receives lines. retried: keys whose error records do not
    count as results, since the command tries them again. stop: whether a person wants the end."""

    def __init__(
        self,
        parts: Parts,
        executor: Executor,
        collector: Collector,
        say: Callable[[str], None],
        retried: Collection[str] = (),
        stop: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.parts, self.executor, self.collector = parts, executor, collector
        self._stop = stop
        self.say, self._retried, self._clock = say, frozenset(retried), clock
        self.watched = {n: Watched(n, legs=len(parts.legs(n).begun)) for n in parts.parts()}
        self._scanned = float("-inf")
        self._ending: set[tuple[int, str]] = set()  # parts and jobs that were cancelled before

    # What is known.

    @property
    def retried(self) -> frozenset[str]:
        """The keys whose error records do not count, since nothing new came for them yet."""
        return self._retried - self.collector.new

    def complete(self, number: int) -> bool:
        """Whether each cell of a part has a result."""
        return self.collector.complete(number, self.retried)

    def waiting(self) -> list[int]:
        """The parts of which something is still to come."""
        return [number for number, one in self.watched.items() if not one.over]

    # What is done.

    def start(self, cancelled: bool = False) -> bool:
        """Look at what is there, and submit the parts that are not done and have no job.
        cancelled: whether the run was, so that jobs which are still alive are about to end. Returns
        whether anything is left to be followed. Raises UsageError."""
        self.collector.collect(self.watched)
        jobs = self._settled_queue()
        todo = []
        for number, one in self.watched.items():
            one.job = jobs.get(number)
            one.seen = self._clock()
            if one.job is not None and one.job.alive:
                if cancelled:
                    self._ending.add((number, one.job.job))
                one.state = "running" if one.job.state == "RUNNING" else "waiting"
            elif self.complete(number):
                one.state = "done"
            else:
                todo.append(number)
        if todo:
            self._submit(todo)
        return bool(self.waiting())

    def _settled_queue(self) -> dict[int, Job]:
        """The queue, once it can be believed: an earlier command may have been killed while it
        submitted parts."""
        earlier = self.parts.submissions()
        if not earlier:
            return {}
        until = earlier[-1]["at"] + paced(SILENT)
        complained = False
        while True:
            jobs = self.executor.jobs()
            answered = earlier[-1]["what"] == "submitted"
            known = jobs is not None and set(earlier[-1]["parts"]) <= jobs.keys()
            if jobs is not None and (answered or known or time.time() > until):
                return jobs
            if jobs is None and not complained:
                self.say("note: the queue does not answer; trying again")
                complained = True
            if self._stop():
                raise KeyboardInterrupt
            time.sleep(paced(1.0))

    def _submit(self, numbers: list[int], memory: int = 1) -> None:
        self.collector.remove(numbers, self.retried)
        self.collector.note_done(self.retried)
        run = self.parts.run()["id"]
        self.parts.note_submission(run=run, what="submitting", parts=numbers)
        # Who alone needs a pair encodes it by itself.
        encodes = [
            one
            for one in self.parts.encodes().values()
            if len({*one.parts} & {*numbers}) > 1 and self.parts.legs(one.name).end != "done"
        ]
        job = self.executor.submit(numbers, memory, encodes)
        self.parts.note_submission(run=run, what="submitted", parts=numbers, job=job)
        for number in numbers:
            one = self.watched[number]
            one.state, one.left, one.seen, one.why = "waiting", None, self._clock(), ""
            one.job = Job("PENDING", True, job=job)
            one.starts += 1
            one.refusals = 0

    def step(self) -> None:
        """Look once at queue and folders, where it is time, and act."""
        now = self._clock()
        jobs = self.executor.jobs()
        for number in self.waiting():
            self._look(self.watched[number], jobs, now)
        if now - self._scanned >= paced(SCAN_EVERY):
            self._scanned = now
            self.collector.collect(self.waiting())
            for number in self.waiting():
                if self.complete(number):
                    self.watched[number].state = "done"
        for number in self.waiting():
            if self.watched[number].state == "left":
                self._decide(self.watched[number], now)
        # A job of a part that is done may be about to end: it has no cell to do any more.
        over = {n: one.state for n, one in self.watched.items() if one.over}
        alive = {n for n, job in (jobs or {}).items() if job.alive}
        gone = [n for n, state in over.items() if state == "done" or (jobs and n not in alive)]
        self.collector.remove(gone, self.retried)

    def _look(self, one: Watched, jobs: dict[int, Job] | None, now: float) -> None:
        """Take in what the queue says of a part; nothing where it gave no answer."""
        if jobs is None:
            return
        job = jobs.get(one.number)
        if job is not None and one.job is not None and _older(job, one.job):
            job = None  # the queue does not show yet what was submitted last
        if job is None:
            if one.state != "left" and now - one.seen >= paced(SILENT):
                one.state, one.left = "left", now
                one.job = None
            return
        one.job = job
        if job.alive:
            one.seen, one.left = now, None
            one.state = "running" if job.state == "RUNNING" else "waiting"
        elif one.state != "left":
            one.state, one.left = "left", now

    def _decide(self, one: Watched, now: float) -> None:
        """What becomes of a part that left the queue with cells to do. Raises UsageError."""
        assert one.left is not None
        if now < one.again:
            return
        legs = self.parts.legs(one.number)
        if len(legs.begun) > one.legs:
            one.legs, one.starts = len(legs.begun), 0
        state = "UNKNOWN" if one.job is None else one.job.state
        if legs.end in ("given up", "refused") and legs.last is not None:
            one.state = "given up" if legs.end == "given up" else "refused"
            one.why = legs.last["end"]["message"]
            return
        if self.parts.cancelled or self._cancelled(one):
            one.state, one.why = "cancelled", "cancelled"
            return
        # What a job that was killed had written may be seen late.
        if legs.end is None and now - one.left < paced(LATE):
            return
        self.collector.collect([one.number])
        if self.complete(one.number):
            one.state = "done"
            return
        if one.starts >= MOST_STARTS:
            one.state = "given up"
            one.why = (
                f"{one.starts} jobs in a row ended ({state}) before the part started; see "
                f"{self.parts.file(one.number, '.log')}"
            )
            return
        if state == OUT_OF_MEMORY and one.doubled:
            one.state = "given up"
            tried = ", even with twice the memory; raise mem" if self._mem() else " twice; set mem"
            one.why = f"out of memory{tried}"
            return
        memory = 2 if state == OUT_OF_MEMORY or one.doubled else 1
        try:
            self._submit([one.number], memory)
        except UsageError as error:
            one.refusals += 1
            if one.refusals < MOST_STARTS:
                one.again = now + paced(SILENT)
                self.say(f"note: part {one.number} could not be resubmitted: {error}; trying again")
                return
            if memory == 1:
                raise
            one.state = "given up"
            one.why = f"out of memory, and twice the memory was refused: {error}"
            return
        one.doubled = memory == 2
        self.say(
            f"note: part {one.number} left the queue ({state}) with unfinished cells; resubmitted"
            + (" with twice the memory" if memory == 2 and self._mem() else "")
        )

    def _mem(self) -> str | None:
        """What the run asks for; otherwise Slurm's default holds, which nobody can double."""
        found: str | None = self.parts.run()["executor"].get("mem")
        return found

    def _cancelled(self, one: Watched) -> bool:
        """Whether a person ended the part's job since this command was given."""
        job = one.job
        if job is None or not job.state.startswith(CANCELLED):
            return False
        return "preempt" not in job.reason.lower() and (one.number, job.job) not in self._ending

    def unfinished(self) -> list[str]:
        """A sentence for each group of parts that are over and not done."""
        groups: dict[tuple[State, str], list[int]] = {}
        for one in self.watched.values():
            if one.over and one.state != "done":
                groups.setdefault((one.state, one.why), []).append(one.number)
        return [
            f"{plural(len(numbers), 'part')} {state} ({listed(map(str, numbers))})"
            + (f": {why}" if why != state else "")
            for (state, why), numbers in groups.items()
        ]


def _older(found: Job, known: Job) -> bool:
    """Whether the queue shows an earlier job than those that were submitted last."""
    first = known.job.partition(",")[0]
    if not (found.job.isdigit() and first.isdigit()):
        return False
    return int(found.job) < int(first)
