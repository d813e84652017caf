"""A whole Slurm on this machine, on loopback: munge, slurmctld, and a slurmd for each node.

It needs root and Debian's packages, which .ci/run installs. `Slurm.start` returns one that `stop`
ends; only processes that it started itself are ended.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PACKAGES = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "munged": "munge",
}
DAEMONS = ("slurmstepd", "slurmd", "slurmctld", "slurmscriptd", "munged")

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_min_interval=0,batch_sched_delay=0,requeue_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=10
KillWait=3
OverTimeLimit=0
MinJobAge=600
JobRequeue=1
MaxArraySize=101
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=2
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str:
    """Why no Slurm can be started here, or ""."""
    if os.geteuid() != 0:
        return "a Slurm of one's own needs root"
    lacking = [package for program, package in PACKAGES.items() if not shutil.which(program)]
    return (
        f"not installed: {', '.join(lacking)} (tests/cluster/slurm.py install)" if lacking else ""
    )


class Slurm:
    """nodes: their names. env: what its commands need in their environment."""

    def __init__(self, folder: Path, nodes: int = 2, cpus: int = 1, gpus: int = 1) -> None:
        self.folder = folder
        self.nodes = [f"n{i + 1}" for i in range(nodes)]
        self._ports = free_ports(nodes + 1)
        self.env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        for name in ("state", "spool", "log"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        host = socket.gethostname().partition(".")[0]
        described = [
            f"NodeName={node} NodeHostName={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} "
            f"RealMemory=4000 Gres=gpu:{gpus} State=UNKNOWN"
            for node, port in zip(self.nodes, self._ports[1:], strict=True)
        ]
        text = CONFIGURATION.format(
            host=host, port=self._ports[0], folder=folder, nodes="\n".join(described)
        )
        (folder / "slurm.conf").write_text(text)
        # Terminals stand for GPUs: Slurm only wants files of devices, and sets the variable.
        devices = [
            f"NodeName={n} Name=gpu File=/dev/tty{g}" for n in self.nodes for g in range(gpus)
        ]
        (folder / "gres.conf").write_text("\n".join(devices) + "\n")

    def start(self) -> Slurm:
        """Start all daemons and wait until every node is idle."""
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        files = {"key-file": key, "socket": "munge.sock", "pid-file": "munged.pid"}
        files |= {"log-file": "log/munged.log", "seed-file": "munge.seed"}
        self._begin("munged", "--force", *(f"--{k}={self.folder / v}" for k, v in files.items()))
        self._begin("slurmctld", "-c")
        for node in self.nodes:
            self._begin("slurmd", "-N", node)
        self.wait(lambda: self.idle() == len(self.nodes), 30, "its nodes are not idle")
        return self

    def _begin(self, *command: str) -> None:
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False)
        if done.returncode:
            self.stop()
            raise RuntimeError(f"{command[0]}: {done.stderr or done.stdout}")

    def call(self, *command: str, check: bool = True) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(
            command, env=self.env, capture_output=True, text=True, timeout=120, check=False
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout.strip()

    def idle(self) -> int:
        """How many nodes have nothing to do."""
        found = self.call("sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D", check=False)
        return int(found or 0)

    def running(self) -> list[tuple[str, str]]:
        """(job, node) of the tasks that run, in the partition of tests."""
        lines = self.call("squeue", "-h", "-r", "-p", "main", "-t", "R", "-o", "%i|%N", check=False)
        return [tuple(line.split("|")) for line in lines.splitlines() if "|" in line]  # type: ignore[misc]

    def lose(self, node: str) -> None:
        """A node is gone at once, with all that runs on it, as in a power cut."""
        jobs = self.call("squeue", "-h", "-t", "R", "-w", node, "-o", "%A", check=False).split()
        for pid, words, environment in processes():
            mine = f"SLURM_CONF={self.folder}/slurm.conf" in environment
            if (
                (words.startswith(f"slurmd -N {node}") and mine)
                or (mine and f"SLURMD_NODENAME={node}" in environment)
                or any(words.startswith(f"slurmstepd: [{job}.") for job in jobs)
            ):
                end(pid, signal.SIGKILL)
        (self.folder / f"slurmd.{node}.pid").unlink(missing_ok=True)

    def bring_back(self, node: str) -> None:
        """Start a lost node again."""
        self._begin("slurmd", "-N", node)

    def wait(self, condition: object, seconds: float, otherwise: str) -> None:
        """Until `condition()`; AssertionError after so many seconds."""
        assert callable(condition)
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until:
                logs = "\n".join(f.read_text()[-1500:] for f in (self.folder / "log").glob("*.log"))
                raise AssertionError(f"{otherwise}\n{logs}")
            time.sleep(0.1)

    def mine(self) -> list[int]:
        """The daemons that were started here, and what runs in their jobs."""
        found = []
        for pid, words, environment in processes():
            ours = f"SLURM_CONF={self.folder}/slurm.conf" in environment
            daemon = words.startswith(DAEMONS) and (ours or str(self.folder) in words)
            if daemon or (ours and any(v.startswith("SLURM_JOB_ID=") for v in environment)):
                found.append(pid)
        return found

    def stop(self) -> None:
        """End the jobs and all daemons."""
        for pid in self.mine():
            end(pid, signal.SIGTERM)
        until = time.monotonic() + 5
        while self.mine() and time.monotonic() < until:
            time.sleep(0.1)
        for pid in self.mine():
            end(pid, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses."""
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def processes() -> Iterator[tuple[int, str, list[str]]]:
    """Of each other process its number, its command line and its environment."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                )
                environment = (
                    (entry / "environ").read_bytes().decode("utf-8", "replace").split("\0")
                )
            except OSError:
                continue
            yield int(entry.name), words, environment


def end(pid: int, number: int) -> None:
    """Signal a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
