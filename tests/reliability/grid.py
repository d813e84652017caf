"""A grid of short cells, and the command line that runs it, to be disturbed."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tests import warm
from vipbench.results import Predictions, Record
from vipbench.results.store.store import Store

REPO = Path(__file__).resolve().parents[2]

PLUGIN = '''
"""A method that takes a moment, and numbers that depend on the support set."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import vipbench
from vipbench import api


class Steady(api.Method):
    """Class means of the support set."""

    name = "steady"
    kind = "TF"
    needs = frozenset()

    @dataclass(frozen=True)
    class HParams(api.HParams):
        """tag: makes a row of its own. seconds: what a cell takes. big: bytes it learns."""

        tag: int = 0
        seconds: float = 0.2
        big: int = 0

    def prepare(self, support):
        time.sleep(self.hparams.seconds)
        rows = [support.plain[support.labels == c].mean(0) for c in range(support.n_classes)]
        self.means = torch.stack(rows) * (1 + self.hparams.tag)
        log = os.environ.get("STEADY_LOG")
        if log:
            with Path(log).open("a") as file:
                file.write(f"{os.getpid()}\\n")
            # Until so many workers have begun, none goes on.
            together, until = int(os.environ.get("STEADY_TOGETHER", "1")), time.monotonic() + 60
            while len(set(Path(log).read_text().split())) < together and time.monotonic() < until:
                time.sleep(0.02)

    def forward(self, x):
        return x @ self.means.T


@vipbench.hookimpl
def register_methods(register):
    register(Steady)
'''


def write_data(folder: Path, test: int = 10) -> Path:
    """`toy.npz`, two classes told apart by brightness, and `plugins/steady.py`."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 24), ("val", 4), ("test", test)):
        labels = np.arange(count) % 2
        noise = rng.integers(0, 200, (count, 28, 28))
        arrays[f"{split}_images"] = (noise + 50 * labels[:, None, None]).astype(np.uint8)
        arrays[f"{split}_labels"] = labels[:, None].astype(np.uint8)
    np.savez(folder / "toy.npz", **arrays)
    (folder / "toy.yaml").write_text("class_names: [dark, bright]\n")
    (folder / "plugins").mkdir()
    (folder / "plugins" / "steady.py").write_text(PLUGIN)
    return folder


def start(
    data: Path,
    out: Path,
    methods: str,
    *more: str,
    seeds: str = "1",
    env: Mapping[str, str] | None = None,
    dataset: str | None = None,
) -> subprocess.Popen[str]:
    """`vipbench run` on the toy, or another dataset, started; its output goes to pipes."""
    args = [
        *("run", "--methods", methods, "--datasets", dataset or f"npz:{data / 'toy.npz'}"),
        *("--backbones", "tiny-clip", "--shots", "1", "--seeds", seeds, "--views", "none"),
        *("--plugins-dir", str(data / "plugins"), "--out", str(out), *more),
    ]
    mine = {k: v for k, v in os.environ.items() if not k.startswith("VIPBENCH_")}
    mine |= {"PYTHONPATH": str(REPO), "VIPBENCH_CACHE": str(data / "features"), "COLUMNS": "200"}
    return subprocess.Popen(
        [sys.executable, "-m", "vipbench", *args],
        cwd=data,
        env=mine | {"OMP_NUM_THREADS": "1", **(env or {})},
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=warm.listen,
    )


def finish(process: subprocess.Popen[str], timeout: float = 240) -> tuple[int, str, str]:
    """Exit status as a shell has it, standard output, standard error."""
    out, err = process.communicate(timeout=timeout)
    code = process.returncode
    return (128 - code if code < 0 else code), out, err


def children(pid: int) -> list[int]:
    """The living child processes of `pid`."""
    try:
        children_of = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [int(child) for child in children_of if alive(int(child))]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def assert_gone(pids: set[int], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    for pid in pids:
        while alive(pid):
            assert time.monotonic() < deadline, f"process {pid} was left behind"
            time.sleep(0.05)


def kill(pid: int) -> bool:
    """SIGKILL; whether there was someone to receive it."""
    return send(pid, signal.SIGKILL)


def send(pid: int, number: int) -> bool:
    """A signal; whether there was someone to receive it."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def records(out: Path) -> list[Record]:
    """What the folder holds; nothing where it has no results file yet."""
    if not (out / "results.sqlite").exists():
        return []
    with Store(out, readonly=True) as store:
        return store.records()


def predictions(out: Path) -> dict[str, Predictions]:
    """key -> what was predicted, of all finished cells."""
    with Store(out, readonly=True) as store:
        found = {}
        for record in store.records(history=False):
            if record.ok:
                kept = store.predictions(record.key)
                assert kept is not None
                assert record.provenance["prediction_hash"] == kept.prediction_hash
                found[record.key] = kept
        return found


def hashes(out: Path) -> dict[str, str]:
    """key -> prediction hash, of all finished cells."""
    return {key: found.prediction_hash for key, found in predictions(out).items()}


def bits(out: Path) -> dict[str, str]:
    """key -> SHA-256 of every bit of its scores, of all finished cells."""
    return {
        key: hashlib.sha256(found.scores.tobytes()).hexdigest()
        for key, found in predictions(out).items()
    }


def tables(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in ("table.md", "table.tex")}
