"""`vipbench work`, `collect`, `status` and `cancel`: a run that is cut into parts."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

from vipbench.cli.exit_codes import OK
from vipbench.cli.terminal import raw
from vipbench.engine.cluster.executors import LIFELINE_VARIABLE
from vipbench.engine.cluster.folder import Parts, paced
from vipbench.engine.cluster.follow import SCAN_EVERY
from vipbench.engine.cluster.run import cancel, collect
from vipbench.engine.cluster.status import RUNNING, status
from vipbench.engine.cluster.work import work
from vipbench.engine.progress import Log
from vipbench.engine.screen import Screen
from vipbench.text import clean, columns, plural


def work_command(folder: Path, number: int, encode: bool) -> int:
    """Run one part or encode part and return the exit status. Raises UsageError if there is no such
    part."""
    if os.environ.pop(LIFELINE_VARIABLE, ""):
        threading.Thread(target=_end_with_input, daemon=True).start()
    shown = Log(raw(sys.stdout))
    return work(
        folder,
        number,
        lambda spec: Screen(spec, shown, part=True),
        lambda text: shown.line(clean(text)),
        encode,
    )


def _end_with_input() -> None:
    """Whoever started this process is gone when its end of the pipe is closed."""
    while os.read(0, 4096):
        pass
    os._exit(1)


def collect_command(folder: Path, follow: bool) -> int:
    """Collect, or go on until no job is left. Raises UsageError, StoreError."""
    new: set[str] = set()
    while True:
        collector = collect(folder, lambda text: print(f"note: {clean(text)}", flush=True))
        new |= collector.new
        found = status(folder) if follow else None
        if found is None or found.code != RUNNING:
            break
        time.sleep(paced(3 * SCAN_EVERY))
    print(f"{plural(len(new), 'result')} collected into {folder}")
    return OK if found is None else found.code


def status_command(folder: Path, as_json: bool) -> int:
    """Show the state; returns 0 done, 1 errors, 3 running. Raises UsageError."""
    found = status(folder)
    if as_json:
        print(json.dumps(found.as_json(), indent=1))
        return found.code
    print(found.line())
    rows: list[tuple[object, ...]] = [
        ("part", "state", "node", "leg", "done", "failed", "to do", "log")
    ]
    for one in found.parts:
        state = f"{one.state} ({one.reason})" if one.reason else one.state
        counts = (one.done, one.failed, one.todo)
        rows.append((one.part, clean(state), clean(one.node), one.leg, *counts, clean(one.log)))
    for line in columns(rows):
        print(line)
    for pair in found.encodes if found.code == RUNNING else ():
        where = f" on {clean(pair['node'])}" if pair["node"] else ""
        print(f"encode part {pair['encode']}: {pair['state']}{where}, log {clean(pair['log'])}")
    for line in found.broken:
        print(f"failed: {clean(line)}")
    for message, count in found.errors.items():
        where = f" (log {clean(found.logs[message])})" if message in found.logs else ""
        print(f"failed: {plural(count, 'cell')}: {clean(message)}{where}")
    for part in found.parts:
        end = (Parts(folder).legs(part.part).last or {}).get("end") or {}
        if part.state in ("given up", "refused"):
            print(f"part {part.part} {part.state}: {clean(str(end.get('message', '')))}")
    return found.code


def cancel_command(folder: Path) -> int:
    """End all jobs. Raises UsageError."""
    count = cancel(folder)
    print(f"cancelled: {plural(count, 'part')} of {folder}; the same `vipbench run` resumes")
    return OK
