"""Check and measure vipbench on a GPU that is at hand for minutes only.

    python -m benchmarks.gpu --out DIR                            # CUDA, a bit over five minutes
    python -m benchmarks.gpu --device cpu --quick --out DIR       # the rehearsal, toy sizes
    python -m benchmarks.gpu --out DIR --parts methods,grid       # some parts

Appends to DIR/results.jsonl, line by line: one line for each part, and in the part `methods` one
for each method. `status` is "ok"; "wrong" where a figure misses what the line says it must reach;
"failed", "timed out" or "crashed" with the error; or "skipped: no CUDA". DIR/log.txt has all other
output. The exit status is 1 where a part is wrong, failed, timed out or crashed.

All parts run in one process, which imports the libraries once. This process only watches it: where
a part hangs, or ends the process, the next parts get a new one.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

# Seconds of each part, in the order in which they run; of the last, what is left.
LIMITS = {
    "machine": 15, "methods": 60, "golden": 30, "grid": 60, "plain": 30, "encoding": 45,
    "memory": 30, "commands": 45, "compile": 60,
}  # fmt: skip
# For imports, and for what a part does after its time is up.
START, GRACE = 120.0, 20.0
REPO = Path(__file__).resolve().parents[2]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:1 or cpu")
    parser.add_argument("--quick", action="store_true", help="toy sizes: a rehearsal")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--parts", default=",".join(LIMITS), help="some of them, with commas")
    parser.add_argument("--seconds", type=float, default=340.0, help="of all parts together")
    parser.add_argument("--golden", type=Path, metavar="DIR",
                        help="the recorded figures; by default shared/golden in or beside the "
                        "clone")  # fmt: skip
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    args.parts = args.parts.split(",")
    if unknown := [name for name in args.parts if name not in LIMITS]:
        parser.error(f"unknown parts: {', '.join(unknown)}; there are {', '.join(LIMITS)}")
    if args.golden is None:
        places = [REPO / "shared" / "golden", REPO.parent / "shared" / "golden"]
        args.golden = next((place for place in places if place.is_dir()), places[0])
    return args


def append(out: Path, line: dict[str, object]) -> None:
    """One line of `results.jsonl`, on the disk at once."""
    with (out / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
    shown = {k: v for k, v in line.items() if not isinstance(v, dict | list)}
    print(json.dumps(shown), flush=True)


def watch(args: argparse.Namespace) -> None:
    """Run the parts in a process, and in a new one after a hang or a crash."""
    end, left = time.monotonic() + args.seconds, list(args.parts)
    with (args.out / "log.txt").open("a", encoding="utf-8") as log:
        while left:
            left = run_some(args, left, end, log)


def run_some(args: argparse.Namespace, parts: list[str], end: float, log: IO[str]) -> list[str]:
    """Run `parts` in one process; returns those that it did not come to."""
    command = [
        sys.executable, "-m", "benchmarks.gpu", "--worker", "--device", args.device, "--out",
        str(args.out), "--golden", str(args.golden), "--parts", ",".join(parts),
        "--seconds", str(max(1.0, end - time.monotonic())), *(["--quick"] if args.quick else []),
    ]  # fmt: skip
    path = os.pathsep.join(p for p in (str(REPO), os.environ.get("PYTHONPATH")) if p)
    # Torch reads it at its import; with processes that decode, threads that spin take their cores.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": path}
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
        env=environment, start_new_session=True,
    )  # fmt: skip
    said: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def listen() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            said.put(line.strip())
        said.put(None)

    threading.Thread(target=listen, daemon=True).start()
    limit, running, left, status = START, "", list(parts), "timed out"
    begun = time.monotonic()
    try:
        while True:
            word = said.get(timeout=limit)
            if word is None:
                status = "crashed"
                break
            if word.startswith("begin "):
                running, begun = word.removeprefix("begin "), time.monotonic()
                left.remove(running)
                limit = LIMITS[running] * (2 if args.quick else 1) + GRACE
            elif word == "end":
                running, limit = "", START
            elif word.startswith("{"):
                print(word, flush=True)
    except queue.Empty:
        pass
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        code = child.wait()
    # 0: all done; 3: done with a part after which the device is of no more use.
    if running or code not in (0, 3, -signal.SIGKILL) or (not running and status == "timed out"):
        name = running or (left.pop(0) if left else "")
        if name:
            append(args.out, {
                "part": name, "status": status, "seconds": time.monotonic() - begun,
                "error": f"the process ended with {code}; see log.txt"
                if status == "crashed" else "it did not end at its limit",
            })  # fmt: skip
    return left


def end_with_watcher() -> None:
    """End this process and those it started when the process that watches it has ended, however
    that was: they would hold the device, and take from the next measurement."""
    pipe = os.dup(0)

    def listen() -> None:
        os.read(pipe, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=listen, daemon=True).start()


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's text."""
    args = parse(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.worker:
        end_with_watcher()
        from benchmarks.gpu.worker import work

        return work(args)
    file = args.out / "results.jsonl"
    before = len(file.read_text().splitlines()) if file.exists() else 0
    watch(args)
    lines = [json.loads(line) for line in file.read_text().splitlines()[before:]]
    bad = [line for line in lines if line["status"] not in ("ok", "skipped: no CUDA")]
    print(f"{len(lines)} lines in {file}; {len(bad)} of them are neither ok nor skipped")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
