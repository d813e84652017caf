"""What it costs that a plugin's cells run in a process of their own: a run with `ncm` as a plugin
against the same run with the built-in `ncm`, in turns.

    python -m benchmarks.plugin_processes [--pairs N] [--epochs N]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PLUGIN = '''
"""The built-in class means under another name."""
import vipbench
from vipbench.methods.ncm import NCM

class Own(NCM):
    """Class means."""
    name = "own-ncm"

@vipbench.hookimpl
def register_methods(register):
    register(Own)
'''


def seconds(folder: Path, methods: str, number: int, *more: str) -> float:
    """Of one run into a new folder; features are in the cache."""
    command = [
        *(sys.executable, "-m", "vipbench", "run", "--methods", methods, "--shots", "1,2,4"),
        *("--seeds", "1-3", "--views", "none", "--datasets", "synthderm"),
        *("--backbones", "tiny-clip", "--out", str(folder / f"out-{number}"), *more),
    ]
    env = os.environ | {"VIPBENCH_CACHE": str(folder / "features")}
    begin = time.perf_counter()
    subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=50, help="of CoOp, which is run beside")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "plugins").mkdir()
        (folder / "plugins" / "own.py").write_text(PLUGIN)
        plugins = ("--plugins-dir", str(folder / "plugins"))
        beside = f"coop[epochs={given.epochs}]"
        runs = {
            "alone": (["ncm"], ["own-ncm", *plugins]),
            f"beside {beside}": ([f"{beside},ncm"], [f"{beside},own-ncm", *plugins]),
        }
        number = 0
        for what, (builtin, plugin) in runs.items():
            found: list[tuple[float, float]] = []
            for pair in range(-1, given.pairs):  # the first fills the cache
                times = []
                for command in (builtin, plugin):
                    number += 1
                    times.append(seconds(folder, command[0], number, *command[1:]))
                if pair >= 0:
                    found.append((times[0], times[1]))
            ratios = sorted(b / a for a, b in found)
            print(
                f"{what}: {statistics.median(a for a, _ in found):.1f} s built in, "
                f"{statistics.median(b for _, b in found):.1f} s with the plugin; ratio "
                f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
            )


if __name__ == "__main__":
    main()
