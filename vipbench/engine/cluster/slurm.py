"""Slurm, through its own commands: one array of jobs, a part for each task."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from datetime import datetime
from typing import NamedTuple

from vipbench.engine.cluster.folder import EncodePart, Parts, paced
from vipbench.engine.cluster.queue import Job
from vipbench.errors import UsageError
from vipbench.runspec.executor import PLAIN, ExecutorSpec

SCRIPT = "submit.sh"
# So many seconds before its end a job gets SIGUSR2, or later where its time is short.
LEAD, LEAST_LEAD = 120, 15
# A command that has not answered after so many seconds has failed.
PATIENCE = 60.0
# The queue is asked at most so often, in seconds.
ASK_EVERY = 30.0
QUESTION = ("squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%N|%r")
# States of a job that will run, runs, or is about to do so again.
ALIVE = frozenset(
    "PENDING RUNNING SUSPENDED COMPLETING CONFIGURING REQUEUED REQUEUE_FED REQUEUE_HOLD RESIZING "
    "SIGNALING STAGE_OUT STOPPED SPECIAL_EXIT RESV_DEL_HOLD".split()
)
# What of the environment a job needs; values stay out of the script, which others can read.
_NAMES = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "SHELL", "LD_LIBRARY_PATH"),
    *("PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX", "OMP_NUM_THREADS", "SLURM_CONF"),
    *("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"),
)
_PREFIXES = ("VIPBENCH_", "HF_")
_OWN = ("SLURM_", "SBATCH_", "SRUN_")


class Limits(NamedTuple):
    """What the cluster accepts, None where there is no limit. numbers: the numbers of parts are
    less. jobs: how many may be submitted now."""

    numbers: int | None = None
    jobs: int | None = None


class SlurmError(RuntimeError):
    """A command of Slurm that failed; the message says which, and what it answered."""


def _call(*command: str) -> str:
    """What a command prints. Raises SlurmError."""
    # A driver may itself be a job, whose settings are not for those that it submits.
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(_OWN) or k == "SLURM_CONF"
    }
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env=environment,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except FileNotFoundError:
        raise SlurmError(f"command {command[0]} not found on this machine") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} did not answer within {PATIENCE:.0f} s") from None
    if done.returncode != 0:
        output = (done.stderr or done.stdout).strip()
        raise SlurmError(f"{command[0]} failed (exit status {done.returncode}): {output}")
    return done.stdout


def ranges(numbers: Sequence[int]) -> str:
    """Numbers as --array takes them: 0-3,7."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def lead(spec: ExecutorSpec) -> int:
    """How many seconds before its end a job gets SIGUSR2."""
    return LEAD if spec.seconds is None else max(LEAST_LEAD, min(LEAD, spec.seconds // 5))


def script(parts: Parts, name: str, spec: ExecutorSpec, numbers: Sequence[int], cwd: str) -> str:
    """The batch script, for a person to read."""
    array = ranges(numbers) + (f"%{spec.at_once}" if spec.at_once else "")
    wanted: dict[str, object] = {key: getattr(spec, key) for key in PLAIN}
    wanted |= {"time": spec.time, "mem": spec.mem, "cpus-per-task": spec.cpus}
    wanted |= {"gpus-per-node": spec.gpus, "nodes": 1 if spec.gpus else None, "ntasks": 1}
    names = [k for k in os.environ if k in _NAMES or k.startswith(_PREFIXES)]
    options = {
        "job-name": name,
        "array": array,
        **{key: value for key, value in wanted.items() if value},
        "output": log_pattern(parts, "%3a"),
        "open-mode": "append",
        "chdir": cwd,
        "signal": f"B:USR2@{lead(spec)}",
        "export": ",".join(sorted(names)) or "NONE",
    }
    python = shlex.quote(spec.python or sys.executable)
    inside = f"apptainer exec --nv {shlex.quote(spec.container)} " if spec.container else ""
    out = shlex.quote(str(parts.out))
    lines = [
        "#!/bin/bash",
        "# A run of vipbench that was cut into parts: each task of this array does one of them.",
        "# With the argument --encode, a task encodes the images of one backbone and dataset.",
        *(f"#SBATCH --{key}={_quoted(str(value))}" for key, value in options.items()),
        "#SBATCH --requeue",
        "",
        *spec.setup,
        f'exec {inside}{python} -P -m vipbench work {out} "${{1:---part}}" $SLURM_ARRAY_TASK_ID',
    ]
    return "\n".join(lines) + "\n"


def log_pattern(parts: Parts, stem: str) -> str:
    """Where Slurm writes logs. Raises UsageError for folders that it cannot name."""
    folder = str(parts.folder)
    if "\\" in folder or not folder.isprintable():
        raise UsageError(
            f"Slurm cannot write logs to {folder!r}: its path has a backslash or an unprintable "
            "character; give another output folder (--out)"
        )
    return f"{folder.replace('%', '%%')}/{stem}.log"


def _quoted(value: str) -> str:
    """As sbatch reads it in a script: a folder's name may have spaces."""
    return shlex.quote(value) if re.search(r"[\s\"'#\\]", value) else value


def limits() -> Limits:
    """What this user may submit now. Raises SlurmError."""
    array = re.search(r"^MaxArraySize\s*=\s*(\d+)", _call("scontrol", "show", "config"), re.M)
    jobs = None
    if shutil.which("sacctmgr"):
        user = os.environ.get("USER", "")
        question = ("show", "assoc", f"user={user}", "format=MaxSubmitJobs")
        try:
            answer = _call("sacctmgr", "-n", "-P", *question)
        except SlurmError:
            answer = ""  # no accounting
        if allowed := [int(word) for word in answer.split() if word.isdigit()]:
            others = _call("squeue", "-h", "-r", "-t", "PD,R", "-u", user, "-o", "%i").split()
            jobs = max(0, min(allowed) - len(others))
    return Limits(None if array is None else int(array[1]), jobs)


def end_of_this_job() -> float | None:
    """When this job's time is over, in seconds since the epoch; None where nothing tells."""
    given, job = os.environ.get("SLURM_JOB_END_TIME", ""), os.environ.get("SLURM_JOB_ID")
    if given.isdigit() and int(given):
        return float(given)
    if job is None:
        return None
    # Before version 23 Slurm set no such variable.
    with suppress(SlurmError, ValueError):
        found = re.search(r"\bEndTime=(\S+)", _call("scontrol", "-o", "show", "job", job))
        return None if found is None else datetime.fromisoformat(found[1]).timestamp()
    return None


def requeue_this_job() -> None:
    """Ask Slurm to start this job again, and wait for it to be ended."""
    job, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    name = f"{job}_{task}" if job and task else os.environ["SLURM_JOB_ID"]
    try:
        _call("scontrol", "requeue", name)
    except SlurmError as error:
        print(f"note: {error}; the next `vipbench run` submits this part again", file=sys.stderr)
        return
    time.sleep(60)


class Slurm:
    """The jobs of one run. name: of the jobs, by which they are found again."""

    resubmits = True

    def __init__(self, parts: Parts, spec: ExecutorSpec, name: str) -> None:
        self._parts, self._spec, self.name = parts, spec, name
        self._asked = float("-inf")
        self._answer: dict[int, Job] | None = None

    def submit(
        self, numbers: Sequence[int], memory: int = 1, encodes: Sequence[EncodePart] = ()
    ) -> str:
        """See Executor. Parts that wait for the same encode parts are one array."""
        more = [f"--mem={_times(self._spec.mem, memory)}"] if memory > 1 and self._spec.mem else []
        try:
            arrays: dict[tuple[str, ...], list[int]] = {}
            if encodes:
                jobs = self._encode([one.number for one in encodes])
                for number in numbers:
                    needed = tuple(jobs[one.number] for one in encodes if number in one.parts)
                    arrays.setdefault(needed, []).append(number)
                if self._spec.at_once and len(arrays) > 1:
                    # Of several arrays each would have so many tasks at once.
                    arrays = {tuple(jobs.values()): list(numbers)}
            else:
                arrays[()] = list(numbers)
            found = []
            for needed, some in arrays.items():
                # afterok would leave them waiting for ever, should encoding fail.
                after = [f"--dependency=afterany:{':'.join(needed)}"] if needed else []
                found.append(self._sbatch(some, *more, *after))
        except SlurmError as error:
            raise UsageError(
                f"{error}. Parts that are in the queue stay there; the same command submits the "
                "others. `--print-script` shows the script"
            ) from None
        self._asked = float("-inf")
        return ",".join(found)

    def _sbatch(self, numbers: Sequence[int], *options: str, argument: str = "") -> str:
        array = ranges(numbers) + (f"%{self._spec.at_once}" if self._spec.at_once else "")
        script = str(self._parts.folder / SCRIPT)
        words = ("sbatch", "--parsable", f"--array={array}", *options, script)
        answer = _call(*words, *([argument] if argument else []))
        return answer.strip().partition(";")[0]

    def _encode(self, numbers: Sequence[int]) -> dict[int, str]:
        """Submit these encode parts; of each its job and task. An earlier driver may have been
        killed when it had done so."""
        name = f"{self.name}-encode"
        there = read_queue(_call(*QUESTION, f"--name={name}"))
        found = {n: f"{there[n].job}_{n}" for n in numbers if n in there and there[n].alive}
        missing = [number for number in numbers if number not in found]
        if missing:
            log = f"--output={log_pattern(self._parts, 'encode-%3a')}"
            job = self._sbatch(missing, f"--job-name={name}", log, argument="--encode")
            found |= {number: f"{job}_{number}" for number in missing}
        return found

    def jobs(self) -> dict[int, Job] | None:
        """Of each part its last job, by the queue; None where the queue cannot be asked now."""
        now = time.monotonic()
        if now - self._asked >= paced(ASK_EVERY):
            self._asked = now
            try:
                self._answer = read_queue(_call(*QUESTION, f"--name={self.name}"), self._members)
            except SlurmError:
                self._answer = None
        return self._answer

    def _members(self, job: str) -> set[int]:
        """The parts of an array: as was noted of it, or those whose submission was not noted."""
        noted, open_ = set[int](), set[int]()
        for line in self._parts.submissions():
            if line["what"] == "submitting":
                open_.update(line["parts"])
            else:
                open_.difference_update(line["parts"])
                noted.update(line["parts"] if job in line["job"].split(",") else ())
        return noted or open_

    def cancel(self) -> None:
        """End all jobs of the run. Raises UsageError."""
        try:
            for name in (self.name, f"{self.name}-encode"):
                _call("scancel", f"--name={name}")
        except SlurmError as error:
            raise UsageError(str(error)) from None

    def close(self) -> None:
        """Jobs need nobody."""


def read_queue(
    answer: str, members: Callable[[str], Collection[int]] = lambda job: ()
) -> dict[int, Job]:
    """Of each task its last job, by the answer to QUESTION. members: the tasks of an array. One
    that was cancelled before it began is a line without its tasks."""
    latest: dict[int, Job] = {}
    whole = []
    for line in answer.splitlines():
        name, state, node, reason, *_ = [*line.strip().split("|"), "", "", ""]
        job, _, task = name.partition("_")
        found = Job(state, state in ALIVE, node, "" if reason == "None" else reason, job)
        if job.isdigit() and task.isdigit():
            if int(task) not in latest or int(latest[int(task)].job) <= int(job):
                latest[int(task)] = found
        elif job.isdigit():
            whole.append(found)
    for found in whole:
        for number in members(found.job):
            known = latest.get(number)
            if known is None or (not known.alive and int(known.job) < int(found.job)):
                latest[number] = found
    return latest


def _times(memory: str, times: int) -> str:
    found = re.fullmatch(r"(\d+)([KMGT]?)", memory)
    assert found is not None
    return f"{int(found[1]) * times}{found[2]}"
