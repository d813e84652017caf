"""The entry point of a worker process: it obeys its driver and ends with it."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from typing import Any, TextIO

from vipbench import trust
from vipbench.engine.workers.session import Session
from vipbench.fetching import offline

Commands = queue.Queue[dict[str, Any]]


def listen(stream: TextIO) -> Commands:
    """The commands that arrive on `stream`; the process ends when it does."""
    commands: Commands = queue.Queue()
    threading.Thread(target=_read, args=(stream, commands), daemon=True).start()
    return commands


def _read(stream: TextIO, commands: Commands) -> None:
    for line in stream:
        commands.put(json.loads(line))
    # The driver is gone; whatever runs here has nobody to report to.
    os._exit(0)


def main() -> None:
    """Serve commands until standard input ends."""
    offline.obey()
    commands = listen(sys.stdin)

    serve(commands)


def serve(commands: Commands) -> None:
    """Serve commands as they come; events go to what standard output was."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    lock = threading.Lock()

    def send(event: dict[str, Any]) -> None:
        with lock:
            out.write(json.dumps(event) + "\n")
            out.flush()

    session = Session(send)
    while True:
        command = commands.get()
        trust.obey(command["code"])
        try:
            session.handle(command)
        except trust.UntrustedCodeError as error:
            send({"event": "untrusted", "code": error.as_json()})
        send({"event": "ready"})
