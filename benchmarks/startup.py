"""Processor seconds of whole commands, from the shell's start to its end, least of some turns.

    python -m benchmarks.startup [--turns 3]

Prints one line a command, beside the bare imports that it could not do without: `list`, one cached
zero-shot cell, a dry run, and the same run again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile

RUN = ("run", "--methods", "zero-shot", "--out")
COMMANDS: dict[str, tuple[str, ...]] = {
    "import typer, pluggy": ("-c", "import typer, pluggy"),
    "list": ("-m", "vipbench", "list"),
    "import torch": ("-c", "import torch"),
    "one cached cell": ("-m", "vipbench", *RUN, "{turn}"),
    "a new dry run": ("-m", "vipbench", *RUN, "none-{turn}", "--dry-run"),
    "the same run again": ("-m", "vipbench", *RUN, "first"),
}


def seconds(words: tuple[str, ...], folder: str) -> float:
    """User and system seconds of a command and its children."""
    env = {**os.environ, "VIPBENCH_CACHE": f"{folder}/cache", "OMP_NUM_THREADS": "1"}
    before = os.times()
    subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, check=True)
    after = os.times()
    return (
        after.children_user + after.children_system - before.children_user - before.children_system
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3)
    turns = parser.parse_args().turns
    with tempfile.TemporaryDirectory() as folder:
        seconds(("-m", "vipbench", *RUN, "first"), folder)
        seconds(COMMANDS["list"], folder)
        for name, words in COMMANDS.items():
            taken = [
                seconds(tuple(word.format(turn=f"out-{turn}") for word in words), folder)
                for turn in range(turns)
            ]
            print(f"{name:24}{min(taken):6.2f} s", flush=True)


if __name__ == "__main__":
    main()
